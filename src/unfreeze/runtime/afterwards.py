"""What is done for people once the work itself is safe on the disk."""

import contextlib
import traceback
from collections.abc import Iterator

from unfreeze.errors import Interrupted
from unfreeze.runtime.console import Console
from unfreeze.runtime.runfolder import RunFolder


@contextlib.contextmanager
def afterwards(
    what: str, run: RunFolder, console: Console, *, again: str = "", debug: bool = False
) -> Iterator[None]:
    """Within the block a fault fails nothing: what was made before is whole, and that is said.

    `what` could not be done: one sentence, with the command that tries `again`. Where it broke
    stands in the run's log, and is shown with `debug`. A run that is stopped stops.
    """
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:  # whatever it is, the model is worth more
        said = " ".join(str(error).split())
        where = "".join(traceback.format_exception(error)).rstrip()
        with contextlib.suppress(Exception):  # a full disk, maybe: that is said below
            run.log(where)
        if debug:
            console.say(where)
        console.warn(
            f"{what} could not be made ({type(error).__name__}: {said}). Everything before it is "
            f"written.{f' To try again: {again}' if again else ''}"
        )
