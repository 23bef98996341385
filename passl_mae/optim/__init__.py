"""Optimizers, schedules, and what is done to parameters by name."""

from passl_mae import runtime

runtime.import_paddle()  # before the modules that import it plainly
