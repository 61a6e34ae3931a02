"""Optional steps after a run's results are saved, such as its report."""

import contextlib
import traceback
from collections.abc import Iterator

from unfreeze.errors import Interrupted
from unfreeze.runtime.console import Console
from unfreeze.runtime.run_folder import RunFolder


@contextlib.contextmanager
def warn_on_failure(
    failed: str, run: RunFolder, console: Console, *, again: str = ""
) -> Iterator[None]:
    """Within the block an exception becomes a warning, and its traceback goes to the run's log.

    `failed`: what could not be done, in words; `again`: the command that tries it again.
    Interrupted is raised as usual.
    """
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:  # no error here may fail a finished run
        with contextlib.suppress(Exception):  # such as a full disk
            run.log("".join(traceback.format_exception(error)).rstrip())
        message = f"{failed} ({type(error).__name__}: {' '.join(str(error).split())})."
        retry = f" To try again: {again}" if again else ""
        console.warn(f"{message} All other files were written.{retry}")
