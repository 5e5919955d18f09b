"""The cases of data: rows to datasets (`rows`), and datasets to micro-batches (`samples`)."""
