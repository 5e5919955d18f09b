"""Runs in MLflow: evidence that outlives the run folder, and a dashboard over commits.

`validation.tracking.publish` sends run folders, `validation.tracking.dashboard` opens MLflow on
them.  MLflow is an optional extra and is imported only when one of them is used; a run that
cannot be sent waits on disk and loses nothing.
"""
