r"""Shows two candidates of a prompt at a time, on a page of this machine, and keeps a person's choices.

  python -m data_pipelines.preferences label --data out/candidates --rater NAME --out out/NAME.jsonl

Open the address it prints. Left and right arrows choose, down says both are as good, Backspace takes
the last choice back. Every choice is appended to the file and on disk before the next pair shows, so
that a kill loses nothing; given again, the command goes on where it stopped. The page is served to this
machine alone (127.0.0.1). Which pairs are shown, and in which order, is that of `rate` with the same
--seed and --pairs_per_set; who drew a picture is not shown.
"""

import contextlib
import fcntl
import http.server
import json
import os
import threading
import urllib.parse
from typing import Any

from absl import flags

from data_pipelines.preferences import candidates, page, pairs
from seedream_jax import types
from seedream_jax.run import cli

HOST = "127.0.0.1"
_MOST_BYTES = 4096  # of a request's body


class Session:
  """The pairs to label, and the file that takes the choices."""

  def __init__(
    self,
    reader: candidates.Reader,
    path: str,
    *,
    data: str,
    rater: str,
    pairs_per_set: int = 1,
    seed: int = 0,
  ):
    """Reads what the file holds already; a last line cut short by a kill is cut off.

    Raises:
      types.UserError: when the file holds no pairs, or pairs that are not of these candidates.
    """
    self._reader, self._path, self._data, self._rater = reader, path, data, rater
    self._todo: dict[str, tuple[int, int, int]] = {}  # id: row, first, second
    for found in reader:
      for a, b in pairs.choose(found.prompt.id, len(found.images), pairs_per_set, seed):
        low, high = sorted((a, b))
        self._todo[f"{found.prompt.id}:{low}-{high}"] = (found.row, a, b)
    self._done: dict[str, None] = {}  # ids in the order they were chosen
    self._file = self._open()

  def _open(self) -> Any:
    folder = os.path.dirname(os.path.abspath(self._path))
    os.makedirs(folder, exist_ok=True)
    file = open(self._path, "ab")  # noqa: SIM115  lives as long as the session
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
      raise types.UserError(f"--out {self._path}: another process is labelling into it") from e
    with open(self._path, "rb") as f:
      file.truncate(f.read().rfind(b"\n") + 1)
    for pair in pairs.read(self._path, "--out"):
      if pair.rater == self._rater and pair.id in self._todo:
        self._check(pair)
        self._done[pair.id] = None
    _sync(folder)  # a new file's name, too
    return file

  def _check(self, pair: pairs.Pair) -> None:
    row, a, b = self._todo[pair.id]
    found = self._reader[row]
    shown = {found.digest(a), found.digest(b)}
    if {ref.get("sha256") for ref in pair.images} != shown:
      raise types.UserError(
        f"--out {self._path}: pair {pair.id} shows other pictures than the candidates do now; "
        "give another file"
      )

  def state(self) -> dict[str, Any]:
    """What the page shows: the next pair, if any, and the count."""
    counts = {"done": len(self._done), "total": len(self._todo), "can_undo": bool(self._done)}
    ident = next((i for i in self._todo if i not in self._done), None)
    if ident is None:
      return {"id": None, **counts}
    prompt = self._reader[self._todo[ident][0]].prompt
    return {"id": ident, "prompt": prompt.text, "lang": prompt.lang, **counts}

  def image(self, ident: str, k: int) -> bytes:
    """A picture of a pair, encoded; KeyError where there is none."""
    row, *shown = self._todo[ident]
    return self._reader[row].images[dict(enumerate(shown))[k]]

  def choose(self, ident: str, preferred: Any) -> None:
    """Writes a choice; ValueError for one that is none."""
    if ident not in self._todo:
      raise ValueError(f"no pair {ident!r}")
    if preferred not in (0, 1, pairs.TIE) or isinstance(preferred, bool | float):
      raise ValueError(f"preferred {preferred!r}; expected 0, 1 or {pairs.TIE!r}")
    self._append(ident, preferred)
    self._done.pop(ident, None)
    self._done[ident] = None

  def undo(self) -> None:
    """Withdraws the last choice that stands, if any; it is asked again."""
    if self._done:
      ident = next(reversed(self._done))
      self._append(ident, None)
      del self._done[ident]

  def close(self) -> None:
    """The file is whole at any time; this only lets go of it."""
    self._file.close()

  def _append(self, ident: str, preferred: Any) -> None:
    row, a, b = self._todo[ident]
    pair = pairs.make(
      self._reader[row], a, b, self._data, self._rater, scores={}, preferred=preferred
    )
    self._file.write(pair.line().encode())
    self._file.flush()
    os.fsync(self._file.fileno())


def _sync(folder: str) -> None:
  fd = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)


class Handler(http.server.BaseHTTPRequestHandler):
  """GET / /next /image, POST /choose /undo; a thread a connection, one answer at a time."""

  session: Session  # these two are of the subclass that `serve` makes
  lock: threading.Lock
  protocol_version = "HTTP/1.1"

  def do_GET(self) -> None:
    """The page, the next pair, or a picture."""
    if self._is_local():
      with self.lock:
        self._get()

  def do_POST(self) -> None:
    """A choice, or taking the last one back; answers with what is next."""
    if self._is_local():
      with self.lock:
        self._post()

  def _get(self) -> None:
    url = urllib.parse.urlsplit(self.path)
    if url.path == "/":
      words = json.dumps(page.WORDS, ensure_ascii=False)
      body = page.HTML.replace("__WORDS__", words).encode()
      self._answer(200, "text/html; charset=utf-8", body)
    elif url.path == "/next":
      self._json(200, self.session.state())
    elif url.path == "/image":
      query = urllib.parse.parse_qs(url.query)
      try:
        body = self.session.image(query["id"][0], int(query["k"][0]))
      except (KeyError, ValueError):
        self._json(404, {"error": "no such picture"})
      else:
        self._answer(200, "image/png", body)
    else:
      self._json(404, {"error": f"no page {url.path}"})

  def _post(self) -> None:
    try:
      length = int(self.headers.get("Content-Length", 0))
      if not 0 <= length <= _MOST_BYTES:
        raise ValueError(f"a body of {length} bytes")
      given = json.loads(self.rfile.read(length) or b"{}")
      if self.path == "/choose":
        self.session.choose(given["id"], given["preferred"])
      elif self.path == "/undo":
        self.session.undo()
      else:
        raise ValueError(f"no page {self.path}")
    except (ValueError, KeyError, TypeError) as e:
      self.close_connection = True  # what is left of the body is not the next request
      self._json(400, {"error": str(e)})
    else:
      self._json(200, self.session.state())

  def _is_local(self) -> bool:
    """Whether the page's own address was asked: another site's script could name it otherwise."""
    host = self.headers.get("Host", "").rpartition(":")[0]
    origin = urllib.parse.urlsplit(self.headers.get("Origin") or f"http://{host}").hostname
    if host in (HOST, "localhost") and origin in (HOST, "localhost"):
      return True
    self.close_connection = True
    self._json(403, {"error": f"expected to be asked as {HOST}"})
    return False

  def _json(self, status: int, value: Any) -> None:
    self._answer(status, "application/json", json.dumps(value, ensure_ascii=False).encode())

  def _answer(self, status: int, kind: str, body: bytes) -> None:
    self.send_response(status)
    self.send_header("Content-Type", kind)
    self.send_header("Content-Length", str(len(body)))
    self.send_header("Cache-Control", "no-store")
    self.end_headers()
    self.wfile.write(body)

  def log_message(self, *args: Any) -> None:
    """Nothing: the page shows the progress."""


def serve(session: Session, port: int) -> http.server.ThreadingHTTPServer:
  """A server bound to this machine alone; `serve_forever` runs it, port 0 takes a free one.

  Raises:
    types.UserError: when the port is taken.
  """
  handler = type("SessionHandler", (Handler,), {"session": session, "lock": threading.Lock()})
  try:
    return http.server.ThreadingHTTPServer((HOST, port), handler)
  except OSError as e:
    raise types.UserError(f"--port {port}: {e.strerror}; 0 takes a free one") from e


def define_flags() -> None:
  """Called once, by the program."""
  flags.DEFINE_string("data", None, "Candidate sets: folder[:split].", required=True)
  flags.DEFINE_string("out", None, "JSON lines to append to.", required=True)
  flags.DEFINE_string("rater", None, "Who chooses: a name for the lines.", required=True)
  flags.DEFINE_integer("pairs_per_set", 1, "Pairs of each prompt.", lower_bound=1)
  flags.DEFINE_integer("seed", 0, "Of the choice of pairs.", lower_bound=0)
  flags.DEFINE_integer("port", 8765, "0 takes a free one.", lower_bound=0, upper_bound=65535)


def main(argv: list[str]) -> int:
  """Entry point; runs until interrupted, then prints a JSON object of counts."""
  del argv
  values = flags.FLAGS
  cli.check_out("--out", values.out)
  if not values.rater.strip():
    raise types.UserError("--rater '': expected a name")
  session = Session(
    candidates.Reader(candidates.open_sets(values.data)),
    values.out,
    data=pairs.relative(values.data, values.out),
    rater=values.rater,
    pairs_per_set=values.pairs_per_set,
    seed=values.seed,
  )
  with serve(session, values.port) as server:
    print(f"label at http://{HOST}:{server.server_port}/ ; stop with Ctrl-C", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
      server.serve_forever()
  state = session.state()
  session.close()
  print(json.dumps({"done": state["done"], "total": state["total"], "out": values.out}))
  return 0
