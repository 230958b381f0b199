"""Why a command cannot do its work, for a person. Bad items never raise: they are rows with a status."""

from __future__ import annotations

import errno
from typing import TypeGuard


class UserError(Exception):
    """A mistake in the input or the command. One line: what, where, how to mend it. Exit code 2."""


class RunError(Exception):
    """The input was fine and the run failed all the same (disk, network, workers). One line. Exit code 1."""


def is_disk_full(error: BaseException) -> TypeGuard[OSError]:
    """No room where it was written to: the disk, a quota, or the size a file may have."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
