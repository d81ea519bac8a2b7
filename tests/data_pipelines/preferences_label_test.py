"""The labelling page: what it shows, what it writes, that a kill loses nothing, and who may ask."""

import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading

from absl.testing import absltest, parameterized

from data_pipelines.posters import fonts
from data_pipelines.preferences import asked, candidates, label, page, pairs, sample
from seedream_jax import types

NUM = 9


def ask(port, method, path, body=None, **headers):
  """(status, body) of one request."""
  connection = http.client.HTTPConnection(label.HOST, port, timeout=60)
  connection.request(method, path, None if body is None else json.dumps(body), headers)
  answer = connection.getresponse()
  data = answer.read()
  connection.close()
  is_json = answer.getheader("Content-Type") == "application/json"
  return answer.status, json.loads(data) if is_json else data


class LabelTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = cls.enterClassContext(tempfile.TemporaryDirectory())
    said = asked.draw("nano", "preference", NUM, (64, 64), 0, fonts.find())
    drawer = sample.RenderDrawer("truth", fonts.find())
    sample.build(sample.Candidates(tuple(said), (drawer,), num_images=3), f"{cls.root}/sets")
    cls.reader = candidates.Reader(candidates.open_sets(f"{cls.root}/sets"))

  def setUp(self):
    super().setUp()
    self.out = os.path.join(self.enter_context(tempfile.TemporaryDirectory()), "a/choices.jsonl")

  def session(self, **kwargs):
    made = label.Session(self.reader, self.out, data="sets:train", rater="ann", **kwargs)
    self.addCleanup(made.close)
    return made

  def lines(self):
    return [json.loads(line) for line in pathlib.Path(self.out).read_text().splitlines()]

  def serve(self, session):
    server = label.serve(session, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    self.addCleanup(server.server_close)
    self.addCleanup(server.shutdown)
    return server.server_port

  def test_choices_are_on_disk_before_the_next_pair_shows(self):
    port = self.serve(self.session())
    status, state = ask(port, "GET", "/next")
    self.assertEqual((status, state["done"], state["total"]), (200, 0, NUM))
    want = []
    for preferred in (0, 1, "tie"):
      want.append((state["id"], preferred))
      shown = [ask(port, "GET", f"/image?k={k}&id={state['id']}")[1] for k in (0, 1)]
      _, after = ask(port, "POST", "/choose", {"id": state["id"], "preferred": preferred})
      line = self.lines()[-1]
      found = self.reader[line["images"][0]["row"]]
      self.assertEqual(shown, [found.images[ref["candidate"]] for ref in line["images"]])
      self.assertEqual((line["prompt"], state["prompt"]), (found.prompt.text,) * 2)
      state = after
    self.assertEqual([(line["id"], line["preferred"]) for line in self.lines()], want)
    self.assertEqual({line["rater"] for line in self.lines()}, {"ann"})
    self.assertEqual((state["done"], state["can_undo"]), (3, True))
    self.assertNotIn("model", json.dumps(state))  # who drew it would sway the choice

  def test_undo_asks_again_and_the_file_only_grows(self):
    session = self.session()
    first = session.state()["id"]
    session.choose(first, 0)
    second = session.state()["id"]
    session.choose(second, 1)
    session.undo()
    self.assertEqual(session.state()["id"], second)
    self.assertEqual([line["preferred"] for line in self.lines()], [0, 1, None])
    self.assertEqual([p.id for p in pairs.read(self.out)], [first])
    session.choose(second, "tie")
    self.assertEqual([p.preferred for p in pairs.read(self.out)], [0, "tie"])
    for _ in range(5):
      session.undo()
    self.assertLen(self.lines(), 6)  # nothing is left to withdraw
    self.assertEqual((session.state()["id"], session.state()["done"]), (first, 0))

  def test_resumes_and_cuts_off_a_torn_line(self):
    session = self.session()
    chosen = []
    for preferred in (0, 1, 0):
      chosen.append(session.state()["id"])
      session.choose(chosen[-1], preferred)
    session.close()
    whole = pathlib.Path(self.out).read_bytes()
    pathlib.Path(self.out).write_bytes(whole + whole[:57])
    again = self.session()
    self.assertEqual((again.state()["done"], pathlib.Path(self.out).read_bytes()), (3, whole))
    self.assertNotIn(again.state()["id"], chosen)
    again.undo()
    self.assertEqual(again.state()["id"], chosen[-1])

  def test_every_pair_is_asked_once(self):
    session = self.session(pairs_per_set=2)
    seen = []
    while (state := session.state())["id"]:
      seen.append(state["id"])
      session.choose(state["id"], "tie")
    self.assertLen(set(seen), 2 * NUM)
    self.assertLen(seen, 2 * NUM)
    shown = {
      f"{s.prompt.id}:{min(p)}-{max(p)}"
      for s in self.reader
      for p in pairs.choose(s.prompt.id, 3, 2, 0)
    }
    self.assertEqual(set(seen), shown)  # those that `rate` rates

  def test_one_process_writes(self):
    self.session()
    with self.assertRaisesRegex(types.UserError, "another process is labelling into it"):
      self.session()

  def test_other_pictures_are_refused(self):
    session = self.session()
    session.choose(session.state()["id"], 0)
    session.close()
    text = pathlib.Path(self.out).read_text()
    digest = json.loads(text)["images"][0]["sha256"]
    pathlib.Path(self.out).write_text(text.replace(digest, "0" * 16))
    with self.assertRaisesRegex(types.UserError, "shows other pictures"):
      self.session()

  @parameterized.parameters(
    ("POST", "/choose", {"id": "x", "preferred": 0}, 400, "no pair 'x'"),
    ("POST", "/choose", {"preferred": 0}, 400, "id"),
    ("POST", "/choose", [], 400, "indices"),
    ("POST", "/other", {}, 400, "no page /other"),
    ("POST", "/choose", {"id": "x" * 5000, "preferred": 0}, 400, "a body of"),
    ("GET", "/image?id=x&k=0", None, 404, "no such picture"),
    ("GET", "/image", None, 404, "no such picture"),
    ("GET", "/../etc/passwd", None, 404, "no page"),
  )
  def test_bad_requests(self, method, path, body, status, error):
    port = self.serve(self.session())
    got = ask(port, method, path, body)
    self.assertEqual(got[0], status)
    self.assertIn(error, got[1]["error"])
    self.assertEqual(ask(port, "GET", "/next")[0], 200)
    self.assertEqual(os.path.getsize(self.out), 0)

  def test_a_choice_that_is_none(self):
    session = self.session()
    for preferred in (2, -1, True, None, "left", 0.0):
      with self.assertRaisesRegex(ValueError, "expected 0, 1 or 'tie'"):
        session.choose(session.state()["id"], preferred)

  def test_only_this_machine_and_this_page_may_ask(self):
    session = self.session()
    port = self.serve(session)
    ident = session.state()["id"]
    self.assertEqual(label.serve(session, 0).server_address[0], "127.0.0.1")
    for headers in ({"Host": f"evil.example:{port}"}, {"Origin": "http://evil.example"}):
      got = ask(port, "POST", "/choose", {"id": ident, "preferred": 0}, **headers)
      self.assertEqual(got[0], 403, headers)
    self.assertEqual(os.path.getsize(self.out), 0)
    own = {"Origin": f"http://127.0.0.1:{port}"}
    self.assertEqual(ask(port, "POST", "/choose", {"id": ident, "preferred": 0}, **own)[0], 200)

  def test_the_page_is_whole(self):
    status, body = ask(self.serve(self.session()), "GET", "/")
    html = body.decode()
    self.assertEqual(status, 200)
    self.assertEqual(set(page.WORDS["zh"]), set(page.WORDS["en"]))
    for words in page.WORDS.values():
      for word in words.values():
        self.assertIn(json.dumps(word, ensure_ascii=False), html)
    ids = set(re.findall(r'id="(\w+)"', html))
    self.assertLessEqual(set(re.findall(r'\$\("(\w+)"\)', html)), ids)
    for key in ("ArrowLeft", "ArrowRight", "ArrowDown", "Backspace"):
      self.assertIn(key, html)
    self.assertNotRegex(html, r"https?://")  # nothing from elsewhere

  def test_a_killed_process_loses_nothing(self):
    command = [sys.executable, "-m", "data_pipelines.preferences", "label", "--rater", "ann"]
    command += ["--data", f"{self.root}/sets", "--out", self.out, "--port", "0"]
    chosen = []
    for done in (0, 2):
      process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
      port = int(re.search(r":(\d+)/", process.stdout.readline())[1])
      _, state = ask(port, "GET", "/next")
      self.assertEqual(state["done"], done)
      for _ in range(2):
        chosen.append(state["id"])
        _, state = ask(port, "POST", "/choose", {"id": state["id"], "preferred": 1})
      process.send_signal(signal.SIGKILL)
      process.wait()
      process.stdout.close()
      self.assertEqual([p.id for p in pairs.read(self.out)], chosen)


if __name__ == "__main__":
  absltest.main()
