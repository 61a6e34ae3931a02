"""What is done for people once the work itself is safe on the disk."""

import contextlib
import traceback
from collections.abc import Iterator

from unfreeze.errors import Interrupted
from unfreeze.runtime.console import Console
from unfreeze.runtime.runfolder import RunFolder


@contextlib.contextmanager
def afterwards(failed: str, run: RunFolder, console: Console, *, again: str = "") -> Iterator[None]:
    """Within the block a fault fails nothing: what was made before is whole, and that is said.

    `failed` says what could not be done, `again` is the command that tries it again. Where it broke
    stands in the run's log. A run that is asked to stop stops.
    """
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:  # whatever it is, the model is worth more
        with contextlib.suppress(Exception):  # a full disk, maybe: that is said below
            run.log("".join(traceback.format_exception(error)).rstrip())
        said = f"{failed} ({type(error).__name__}: {' '.join(str(error).split())})."
        retry = f" To try again: {again}" if again else ""
        console.warn(f"{said} Everything else is written.{retry}")
