"""What a verdict looks like: on a terminal, as JUnit XML, as one HTML page, as an explanation."""
