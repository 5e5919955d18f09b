"""What the harness is installed as."""

DISTRIBUTION = "vpmoe-validation"
