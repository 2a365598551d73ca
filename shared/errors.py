"""Errors that a user can mend. A message says what was found, what was wanted and what to do, in one line."""


class UserError(Exception):
    """Printed by the command line as one line without a traceback; the exit code is 2."""


class ConfigError(UserError):
    """A recipe, an option or a combination of them that cannot work."""


class InputError(UserError):
    """Text or a tokenizer that cannot be read."""


class FormatError(UserError):
    """A stored file (dataset, checkpoint, run directory) that is missing, damaged or of something else."""


class StorageError(UserError):
    """A disk, a network file system or a quota that refuses to read or to write; what was finished is unharmed."""
