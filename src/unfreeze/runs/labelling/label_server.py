"""The page of `label`: a server on this machine for those who know its address.

It listens on 127.0.0.1 only. Every request must have the random token of the address in its path,
and name this server in its Host header: pages of other sites, which a browser may send here (cross
site requests, DNS rebinding), know no token. Images are named by number, never by path.
"""

import contextlib
import io
import json
import secrets
import sys
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from unfreeze.data.images.errors import Undecodable
from unfreeze.data.index.index import Index
from unfreeze.errors import UnfreezeError, UsageError
from unfreeze.runs.labelling.label_table import LabelTable
from unfreeze.text import clean_all

SIDE = 1600  # longest side of an image on the page, in pixels
THUMB = 320  # the same of an image in a group
AHEAD = 4  # images that the page loads before they are needed
_QUALITY = 90
_LISTED = 5  # unreadable images named at the end
_BODY = 2**16  # bytes of a request
_POLICY = (
    "default-src 'none'; img-src 'self'; connect-src 'self'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
Hint = tuple[str, float]  # predicted class and its probability


class LabelSession:
    """The images in the order in which they are shown, their table, and what is known of them.

    `order`: positions in the index. `hints`: prediction by position. `groups`: positions of images
    that are alike. Numbers of the page count along `order`.
    """

    def __init__(
        self,
        index: Index,
        table: LabelTable,
        order: Sequence[int],
        hints: Mapping[int, Hint],
        groups: Sequence[Sequence[int]] = (),
        none_class: str | None = None,
    ) -> None:
        self.table, self.none_class = table, none_class
        self._index, self._order, self._hints = index, order, hints
        number_of = {image: number for number, image in enumerate(order)}
        self._groups = [[number_of[image] for image in group] for group in groups]
        self._before = [table.label(image) for image in order]
        self._reason: dict[int, str] = {}  # by number: "" if the image can be read

    def __len__(self) -> int:
        return len(self._order)

    @property
    def given(self) -> int:
        """How many images got a label, or another one, in this session."""
        labels = (self.table.label(image) for image in self._order)
        return sum(bool(now) and now != old for now, old in zip(labels, self._before, strict=True))

    @property
    def unreadable(self) -> int:
        """How many of the images that were needed so far cannot be read."""
        return sum(map(bool, list(self._reason.values())))

    def status(self, after: int) -> dict[str, Any]:
        """Progress, classes, and the next images without a label, from `after` on and around."""
        todo = ~self.table.labelled()[np.asarray(self._order)]
        todo[[number for number, reason in list(self._reason.items()) if reason]] = False
        numbers = np.flatnonzero(np.roll(todo, -(after + 1)))[:AHEAD] + after + 1
        return {
            "labelled": len(self) - int(todo.sum()) - self._unlabelled_unreadable(),
            "unreadable": self.unreadable,
            "total": len(self),
            "classes": list(self.table.classes),
            "none": self.none_class,
            "groups": len(self._groups),
            "ahead": [int(number) % len(self) for number in numbers],
        }

    def unreadable_lines(self) -> list[str]:
        """A line for each of the first images that cannot be read."""
        found = sorted((number, reason) for number, reason in self._reason.items() if reason)
        lines = [f"cannot be read: {self._path(n)}: {reason}" for n, reason in found[:_LISTED]]
        more = len(found) - _LISTED
        return [*lines, f"cannot be read: {more:,} more images"] if more > 0 else lines

    def _path(self, number: int) -> str:
        return self._index.paths[self._order[number]]

    def _unlabelled_unreadable(self) -> int:
        """Images that cannot be read and have no label."""
        numbers = [number for number, reason in list(self._reason.items()) if reason]
        return sum(not self.table.label(self._order[number]) for number in numbers)

    def item(self, number: int) -> dict[str, Any]:
        """Path, label and prediction of an image."""
        image = self._order[number]
        hint = self._hints.get(image)
        shown = None if hint is None else {"label": hint[0], "probability": hint[1]}
        return {"path": self._path(number), "label": self.table.label(image), "hint": shown}

    def group(self, start: int) -> dict[str, Any]:
        """The first group from `start` on with images without a label, and these; else empty."""
        for place in range(start, len(self._groups)):
            members = self._groups[place]
            left = [n for n in members if not self.table.label(self._order[n])]
            if left:
                return {"place": place, "images": left}
        return {"place": len(self._groups), "images": []}

    def jpeg(self, number: int, side: int = SIDE) -> bytes:
        """The image as JPEG, as training reads it; raises OSError or Undecodable."""
        try:
            pixels = self._index.source.sample(int(self._index.rows[self._order[number]]))
        except (OSError, Undecodable) as error:
            self._reason[number] = _reason(error)
            raise
        self._reason[number] = ""
        image = Image.fromarray(pixels)
        image.thumbnail((side, side), Image.Resampling.BOX)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
        return buffer.getvalue()

    def set(self, labels: Mapping[int, str]) -> list[str]:
        """As `LabelTable.set`, by number; UsageError if an image cannot be read."""
        for number, label in labels.items():
            if label and number not in self._reason:
                with contextlib.suppress(OSError, Undecodable):  # the reason is kept
                    self.jpeg(number)
            if label and (reason := self._reason[number]):
                raise UsageError(f"The image cannot be read: {reason}.", "Skip it.")
        previous = self.table.set({self._order[n]: label for n, label in labels.items()})
        return [previous[self._order[number]] for number in labels]


def _reason(error: OSError | Undecodable) -> str:
    if isinstance(error, Undecodable):
        return f"{error.reason} ({error.detail})"
    return error.strerror or str(error)


class LabelServer(ThreadingHTTPServer):
    """Serves a session at `url`. Port 0: any free one.

    Nothing is answered once `finished` is set, as the page does at the end.
    """

    daemon_threads = True

    def __init__(self, session: LabelSession, port: int = 0) -> None:
        self.session, self.finished = session, threading.Event()
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__(("127.0.0.1", port), _LabelRequest)
        except OSError as error:
            raise UsageError(
                f"Port {port} of 127.0.0.1 cannot be used: {error.strerror}.",
                "Use another --port, or none.",
            ) from error
        self.hosts = [f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")]
        self.url = f"http://{self.hosts[0]}/{self.token}/"
        style = resources.files("unfreeze.reports").joinpath("style.css").read_text("utf-8")
        page = resources.files("unfreeze.runs.labelling").joinpath("page.html").read_text("utf-8")
        self.page = page.replace("/* style.css */", style).encode()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closed the connection is no error; others are shown."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _LabelRequest(BaseHTTPRequestHandler):
    """One request: `/TOKEN/` and then nothing, label, finish or KIND/N.

    Kinds: status, item, image, thumb, group.
    """

    server: LabelServer
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds

    def do_GET(self) -> None:
        parts = self._allowed_parts()
        if parts is None:
            return
        session = self.server.session
        if parts == [""]:
            self._answer(200, self.server.page, "text/html; charset=utf-8")
            return
        kind, number = parts[0], _number(parts[1:], len(session))
        if kind == "status" and number is not None:
            self._json(200, session.status(number))
        elif kind == "item" and number is not None and number >= 0:
            self._json(200, session.item(number))
        elif kind == "group" and number is not None and number >= 0:
            self._json(200, session.group(number))
        elif kind in ("image", "thumb") and number is not None and number >= 0:
            try:
                jpeg = session.jpeg(number, SIDE if kind == "image" else THUMB)
            except (OSError, Undecodable) as error:
                self._json(422, {"error": _reason(error)})
            else:
                self._answer(200, jpeg, "image/jpeg")
        else:
            self._json(404, {"error": "There is no such page."})

    def do_POST(self) -> None:
        parts = self._allowed_parts()
        if parts is None:
            return
        body = self._body()
        if body is None:
            return
        if parts == ["finish"]:
            self._json(200, {})
            self.server.finished.set()
        elif parts == ["label"]:
            self._label(body)
        else:
            self._json(404, {"error": "There is no such page."})

    def _label(self, body: dict[str, Any]) -> None:
        session = self.server.session
        labels = _labels(body.get("images"), body.get("labels"), len(session))
        if labels is None:
            self._json(400, {"error": "Send numbers of images, and a label for each."})
            return
        try:
            previous = session.set(labels)
        except UnfreezeError as error:
            self._json(409, {"error": str(error).replace("\n", " ")})
        except OSError as error:
            self._json(500, {"error": f"{session.table.path} cannot be written: {error}."})
        else:
            self._json(200, {"previous": previous, **session.status(max(labels))})

    def _allowed_parts(self) -> list[str] | None:
        """The parts of the path after the token; None, and 403 is answered, without it."""
        start, _, rest = self.path.removeprefix("/").partition("/")
        origin = self.headers.get("Origin")
        own = [f"http://{host}" for host in self.server.hosts]
        if (
            secrets.compare_digest(start.encode(), self.server.token.encode())
            and self.headers.get("Host", "").lower() in self.server.hosts
            and (origin is None or origin.lower() in own)
        ):
            if not self.server.finished.is_set():
                return rest.partition("?")[0].split("/")
            self._json(410, {"error": "unfreeze label has ended."})
        else:
            self._json(403, {"error": "Use the address that unfreeze label printed."})
        return None

    def _body(self) -> dict[str, Any] | None:
        """The JSON object of a request; None, and an error is answered, for anything else."""
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != "application/json":
            self._json(415, {"error": "Send JSON."})
            return None
        if not (length.isascii() and length.isdigit() and int(length) <= _BODY):
            self._json(413, {"error": "Send a short JSON object, with its length."})
            return None
        try:
            value = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            self._json(400, {"error": "Send a JSON object."})
            return None
        return value

    def _json(self, code: int, value: Mapping[str, Any]) -> None:
        self._answer(code, json.dumps(clean_all(value)).encode(), "application/json")

    def _answer(self, code: int, body: bytes, kind: str) -> None:
        if code >= 400:  # the body of the request may not have been read
            self.close_connection = True
        self.send_response(code)
        keep = kind == "image/jpeg"
        fixed = {"Cache-Control": "private, max-age=3600" if keep else "no-store"}
        for name, text in (_HEADERS | fixed).items():
            self.send_header(name, text)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        """The server's name, without versions."""
        return "unfreeze"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the addresses hold the token."""


def _number(parts: Sequence[str], count: int) -> int | None:
    """The number of an image, or -1 for the place before the first; None for anything else."""
    text = parts[0] if len(parts) == 1 else ""
    if text == "-1":
        return -1
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else count
    return number if number < count else None


def _labels(images: Any, labels: Any, count: int) -> dict[int, str] | None:
    """Label by number of an image; None unless these are lists of the same length, not empty."""
    if not isinstance(images, list) or not isinstance(labels, list) or len(images) != len(labels):
        return None
    if not all(type(number) is int and 0 <= number < count for number in images):
        return None
    texts = [label for label in labels if isinstance(label, str)]
    return dict(zip(images, texts, strict=True)) if 0 < len(texts) == len(images) else None
