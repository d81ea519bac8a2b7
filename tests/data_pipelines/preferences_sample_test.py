"""Candidate sets: who drew what from which noise, resumed after a kill, and no prompt of a suite."""

import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl.testing import absltest, parameterized

from data_pipelines.posters import fonts, prompts, worlds
from data_pipelines.preferences import asked, candidates, sample
from seedream_jax import types
from seedream_jax.data import loader, records
from seedream_jax.run import pipeline
from tests.data import datasets


class FakeDrawer:
  """Pictures that tell the prompt, the seed and the drawer."""

  def __init__(self, name: str = "fake"):
    self.name, self.calls = name, []

  def describe(self):
    return {"fake": self.name}

  def check(self, asked_prompts):
    pass

  def __call__(self, asked_prompts, seeds):
    self.calls.append(len(seeds))
    return [self.picture(p, seed) for p, seed in zip(asked_prompts, seeds)]

  def picture(self, prompt, seed):
    words = f"{self.name}/{prompt.id}/{seed}".encode()
    rng = np.random.default_rng(list(hashlib.sha256(words).digest()))
    return rng.integers(0, 256, (*prompt.size, 3), np.uint8)

  def damage_of(self, prompt, seed):
    return "odd" if seed % 2 else ""


def drawn(num: int = 7, seed: int = 0) -> list[asked.Prompt]:
  return asked.draw("nano", "preference", num, (64, 64), seed, fonts.find())


class SampleTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.dir = self.enter_context(tempfile.TemporaryDirectory())

  def build(self, out="out", prompts_=None, drawers=None, **kwargs):
    fields = dict(num_images=2, seed=3, chunk=2)
    shard_size, progress = kwargs.pop("shard_size", 3), kwargs.pop("progress", lambda n: None)
    source = sample.Candidates(
      tuple(prompts_ or drawn()), tuple(drawers or [FakeDrawer()]), **{**fields, **kwargs}
    )
    return sample.build(source, f"{self.dir}/{out}", shard_size=shard_size, progress=progress)

  def digests(self, out="out"):
    files = pathlib.Path(self.dir, out).glob("*.array_record*")
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

  def test_a_record_says_who_drew_what_from_which_noise(self):
    wide = asked.Prompt("w", 'a banner says "春"', "en", (48, 80))
    said = [*drawn(3), wide]
    drawers = [FakeDrawer("a"), FakeDrawer("b")]
    self.build(prompts_=said, drawers=drawers)
    sets = list(candidates.Reader(candidates.open_sets(f"{self.dir}/out")))
    self.assertEqual([s.prompt for s in sets], said)
    self.assertEqual([s.prompt.scene for s in sets], [p.scene for p in said])
    self.assertEqual(sets[3].prompt.tags, (asked.TEXT,))
    for found in sets:
      self.assertEqual([o["model"] for o in found.origins], ["a", "a", "b", "b"])
      seeds = [o["seed"] for o in found.origins]
      self.assertEqual(seeds[:2], seeds[2:])  # one noise for every model
      self.assertNotEqual(seeds[0], seeds[1])
      for k, origin in enumerate(found.origins):
        want = drawers[k // 2].picture(found.prompt, origin["seed"])
        np.testing.assert_array_equal(found.decode(k), want)
        self.assertEqual(origin["damage"], "odd" if origin["seed"] % 2 else "")

  def test_the_loader_reads_the_sets(self):
    self.build()
    made = loader.Loader(
      dict(
        sources=((f"{self.dir}/out", 1.0),), features=("id_B", "image_BRHWC", "tag_B"), batch_size=3
      )
    )
    batch = made.batch(0)
    self.assertEqual(batch["image_BRHWC"].shape, (3, 2, 64, 64, 3))

  def test_chunks_change_no_byte_and_a_rerun_draws_nothing(self):
    self.build("two", chunk=2)
    self.build("five", chunk=5)
    self.assertEqual(self.digests("two"), self.digests("five"))
    again = FakeDrawer()
    told = []
    report = self.build("two", drawers=[again], progress=told.append)
    self.assertEqual((report.rendered, report.kept, again.calls, sum(told)), (0, 7, [], 7))

  def test_an_interrupted_run_resumes_and_ends_alike(self):
    self.build("whole")

    class Stops(FakeDrawer):
      def __call__(self, asked_prompts, seeds):
        if len(self.calls) == 2:
          raise KeyboardInterrupt
        return super().__call__(asked_prompts, seeds)

    with self.assertRaises(KeyboardInterrupt):
      self.build(drawers=[Stops()])
    with self.assertRaisesRegex(types.UserError, "no dataset_info.json"):
      records.open_split(f"{self.dir}/out")
    told = []
    report = self.build(progress=told.append)
    self.assertEqual((report.kept, report.rendered), (3, 4))
    self.assertEqual(sum(told), 7)
    self.assertEqual(self.digests(), self.digests("whole"))

  @parameterized.parameters(
    dict(seed=4), dict(num_images=3), dict(drawers=[FakeDrawer("other")]), dict(prompts_=drawn(6))
  )
  def test_other_candidates_do_not_mix(self, **change):
    self.build()
    with self.assertRaisesRegex(types.UserError, "give another --out"):
      self.build(**change)

  def test_renders_show_the_scene_and_damage_is_named(self):
    said = drawn(12)
    truth, damaged = (sample.RenderDrawer(n, fonts.find()) for n in ("truth", "damaged"))
    self.build(prompts_=said, drawers=[truth, damaged])
    kinds = set()
    for found in candidates.Reader(candidates.open_sets(f"{self.dir}/out")):
      self.assertEqual([o["damage"] for o in found.origins[:2]], ["", ""])
      kinds |= {o["damage"] for o in found.origins[2:]}
      self.assertEqual(found.decode(0).shape, (64, 64, 3))
      self.assertFalse(np.array_equal(found.decode(0), found.decode(2)))
    self.assertNotIn("", kinds)
    self.assertGreater(len(kinds), 4)
    with self.assertRaisesRegex(types.UserError, "--render truth: prompt x has no scene"):
      truth.check([asked.Prompt("x", "a cat", "en", (64, 64))])

  def test_a_killed_process_resumes(self):
    out = f"{self.dir}/killed"
    command = [
      *(sys.executable, "-m", "data_pipelines.preferences", "sample", "--render", "truth,damaged"),
      *("--split", "preference", "--num", "300", "--shard_size", "20", "--out"),
    ]
    done = subprocess.run([*command, f"{self.dir}/whole"], capture_output=True, check=True)
    process = subprocess.Popen([*command, out], stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not list(pathlib.Path(out).glob("receipts/*.json")) and time.time() < deadline:
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    self.assertFalse(os.path.exists(f"{out}/dataset_info.json"), "it was done before the kill")
    done = subprocess.run([*command, out], capture_output=True, text=True, check=True)
    counts = json.loads(done.stdout.splitlines()[-1])
    self.assertGreaterEqual(counts["kept"], 20)
    self.assertEqual(self.digests("killed"), self.digests("whole"))


class AskedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = os.path.join(self.enter_context(tempfile.TemporaryDirectory()), "p.jsonl")

  def read(self, *lines, num=0):
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    pathlib.Path(self.path).write_text("\n".join(text) + "\n", encoding="utf-8")
    return asked.read(self.path, (48, 64), num)

  def test_defaults(self):
    one, two = self.read(
      {"prompt": "写着“春”的海报"}, "", {"prompt": "a cat", "id": 7, "lang": "en"}
    )
    self.assertEqual((one.lang, one.tags, one.size), ("zh", ("text",), (48, 64)))
    self.assertEqual((two.id, two.tags, two.scene), ("7", (), None))
    self.assertLen(self.read({"prompt": "a"}, {"prompt": "b"}, num=1), 1)

  @parameterized.parameters("bench", "heldout", "hard", "text", "val")
  def test_a_scene_kept_for_judging_is_refused(self, suite):
    with self.assertRaisesRegex(types.UserError, f"--split {suite}: is kept for judging"):
      asked.draw("nano", suite, 1, (64, 64), 0, fonts.find())
    scenes = prompts._scenes(worlds.make_world("nano"), suite, (64, 64))
    with self.assertRaisesRegex(types.UserError, f"line 1: prompt a shows .* split '{suite}'"):
      self.read({"prompt": "a", "id": "a", "scene": next(scenes)[1]})

  def test_the_preference_suite_is_taken(self):
    scene = next(prompts._scenes(worlds.make_world("nano"), "preference", (64, 64)))[1]
    self.assertEqual(self.read({"prompt": "a", "scene": scene})[0].size, (64, 64))

  @parameterized.parameters(
    ("{", "line 1: "),
    ({"text": "a"}, 'line 1: expected an object with "prompt"'),
    ({"prompt": " "}, "line 1: prompt without text"),
    ({"prompt": "a", "lang": "fr"}, "lang 'fr', expected one of zh, en"),
    ({"prompt": "a", "scene": {"size": [1, 2]}}, "scene lacks 'background'"),
    ("", "no prompts"),
  )
  def test_bad_files(self, line, regex):
    with self.assertRaisesRegex(types.UserError, regex):
      self.read(line)

  def test_an_id_occurs_once(self):
    with self.assertRaisesRegex(types.UserError, "line 2: id '1' occurs again"):
      self.read({"prompt": "a", "id": 1}, {"prompt": "b", "id": 1})

  @parameterized.parameters(
    ("base", "expected NAME=PATH"),
    ("a=b,step=4", "step=4; expected steps=N"),
    ("a=b,steps=x", "steps=x; expected"),
    ("a=b,steps=0", "steps=0; expected at least 1"),
    ("a=b,aesthetics=-1", "aesthetics=-1; expected at least 0"),
    ("a=b,guidance=nan", "guidance nan: expected a finite number"),
    ("truth=b", "the name 'truth' is taken"),
  )
  def test_bad_models(self, text, regex):
    with self.assertRaisesRegex(types.UserError, regex):
      sample.parse_models([text], pipeline.Options())

  def test_a_model_may_have_its_own_options(self):
    (found,) = sample.parse_models(["a=b/c,steps=4,guidance=1.5,aesthetics=0"], pipeline.Options())
    own = pipeline.Options(num_steps=4, guidance=1.5, aesthetics=0.0)
    self.assertEqual(found, ("a", "b/c", own))

  def test_other_data_sets_are_no_candidates(self):
    folder = datasets.write(os.path.dirname(self.path) + "/pairs", 3, content="images")
    with self.assertRaisesRegex(types.UserError, "holds no candidate sets"):
      candidates.open_sets(folder)


if __name__ == "__main__":
  absltest.main()
