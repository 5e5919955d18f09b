"""`golden`: the command line.

Nothing is imported with this package: half a second of imports shall not begin before Ctrl-C is
provided for.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(argv: "Sequence[str] | None" = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        argv: words of the command line; None takes this process's own, and provides for Ctrl-C and
            SIGTERM from here to the end of the process.

    Returns:
        The exit code.
    """
    if argv is not None:
        from validation.cli.program import main as run

        return run(argv)
    try:
        from validation.starting import interruptible_start, undisturbed_end

        interruptible_start("golden")
        from validation.cli.program import main as run

        code = run()
        undisturbed_end()
    except KeyboardInterrupt:  # before, or between, two of these lines
        return 130
    return code
