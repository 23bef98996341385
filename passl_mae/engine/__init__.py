"""Tasks, the trainer, checkpoints, and how a config becomes a run."""

from passl_mae import runtime

runtime.import_paddle()  # before the modules that import it plainly
