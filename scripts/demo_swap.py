"""`make demo-swap`: a running service learns a new pair of related words, without losing a request.

Serves a model from a store; adds the pair to its table and publishes that under the alias that the service follows. A
client asks all the while. With `--train` the pair is learnt instead: a small checkpoint is trained on the sample data,
and trained on with the pair among its terms.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx

from app.models.loaded import EMBEDDED
from sparse_encoder.artifact import read_manifest
from sparse_encoder.packed import unpack
from sparse_encoder.store import Store
from tests.app.server import Server, running

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "training" / "sample"


class Client(threading.Thread):
    """Asks without a pause and counts the answers by status and version."""

    def __init__(self, url: str, text: str) -> None:
        super().__init__()
        self.answers: Counter[tuple[int, str]] = Counter()
        self._url = url
        self._text = text
        self._over = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=None) as client:
            while not self._over.is_set():
                response = client.post("/encode", json={"texts": [self._text], "input_type": "query"})
                self.answers[response.status_code, response.headers.get("x-model-version", "none")] += 1
                self._over.wait(0.02)

    def stop(self) -> None:
        self._over.set()
        self.join()


def write_recipe(path: Path, pair: tuple[str, str] | None, steps: int) -> Path:
    """The sample recipe with other steps and, if there is one, `pair` among its terms."""
    rows = (SAMPLE / "terms.tsv").read_text(encoding="utf-8").splitlines()
    terms = path.with_suffix(".tsv")
    terms.write_text("\n".join([*rows, "\t".join(pair)] if pair else rows) + "\n", encoding="utf-8")
    changes = {
        'name = "sample"\n\n[data]': 'name = "demo"\n\n[data]\nheld_out_percent = 0',
        'root = "training/sample"': f"root = {json.dumps(str(SAMPLE))}",
        'path = "terms.tsv"': f"path = {json.dumps(str(terms))}",
        "steps = 20": f"steps = {steps}\nterm_share = 0.8",  # else only some of the terms are trained on
        "save_steps = 10": f"save_steps = {steps}",
        # A word whose logit has fallen below zero learns nothing any more, so the first training must leave some alive.
        "[publish]\n": "[loss]\nflops_query = 0.001\nflops_document = 0.001\nsynonym = 4.0\n\n[publish]\n",
    }
    text = (SAMPLE / "recipe.toml").read_text(encoding="utf-8")
    for old, new in changes.items():
        if old not in text:
            sys.exit(f"training/sample/recipe.toml has no {old!r} any more: change write_recipe")
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return path


def command(*arguments: str | Path) -> str:
    """Runs a part of this project; its last line of output."""
    print("   $ python " + " ".join(map(str, arguments)))
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout.splitlines()[-1] if done.stdout.strip() else ""


def train(run: Path, store: Store, pair: tuple[str, str] | None, steps: int) -> None:
    """Trains, measures and publishes as stable."""
    recipe = write_recipe(run.with_suffix(".toml"), pair, steps)
    command("-m", "training", "train", recipe, "--run", run)
    command("-m", "training", "evaluate", recipe, "--run", run)
    publish = (
        "--store",
        store.url,
        "--alias",
        "stable",
        "--force",
        "--reason",
        "a demonstration: so short a training is no good",
    )
    command("-m", "training", "publish", recipe, "--run", run, *publish)


def add(store: Store, pair: tuple[str, str]) -> None:
    """Adds `pair` to the table of what is stable, and publishes that as stable."""
    command("-m", "sparse_encoder", "related", "add", "stable", *pair, "--store", store.url, "--alias", "stable")


def show(server: Server, term: str, related: str, top: int = 10) -> str:
    """Prints the heaviest words of `term`; returns the version that said so."""
    body = {"texts": [term], "input_type": "query", "top_k": 64}
    response = httpx.post(f"{server.url}/encode", json=body, timeout=None)
    (vector,) = response.json()
    words = [f"{word} {weight:.2f}" for word, weight in list(vector.items())[:top]]
    rank = list(vector).index(related) + 1 if related in vector else None
    version = str(response.headers["x-model-version"])
    print(f"   {version}: {term} → {', '.join(words)}")
    print(f"   {related}: " + (f"rank {rank}, weight {vector[related]:.2f}" if rank else "not among the words"))
    return version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", nargs=2, metavar=("TERM", "RELATED"), help="default: 소득세 and a word it lacks")
    parser.add_argument("--model", type=Path, help="artifact with a table of related words (default: the embedded one)")
    parser.add_argument("--train", action="store_true", help="train twice instead of changing a table")
    parser.add_argument("--steps", type=int, default=100, help="of each of the two trainings")
    options = parser.parse_args()
    # The sample's small vocabulary lacks 월급, and the embedded model knows 세금 already.
    term, related = options.pair or ("소득세", "세금" if options.train else "월급")
    with tempfile.TemporaryDirectory(prefix="demo-swap-") as temporary:
        directory = Path(temporary)
        store = Store(str(directory / "store"))
        if options.train:
            print("1. Train a small checkpoint on the sample data and publish it as stable", flush=True)
            train(directory / "first", store, None, options.steps)
        else:
            artifact = options.model or unpack(EMBEDDED, directory / "embedded").path
            print(f"1. Publish {read_manifest(artifact).version} as stable", flush=True)
            store.publish(artifact, aliases=["stable"], by="demo")
        print("2. Start the service on that store, and a client that asks without a pause", flush=True)
        with running("-m", "app", "--port", "0", "--store", store.url, "--poll-seconds", "1") as server:
            first = show(server, term, related)
            client = Client(server.url, term)
            client.start()
            try:
                started = time.monotonic()
                if options.train:
                    print(f"3. Go on with the training, with one pair more: {term} – {related}", flush=True)
                    # A run that finds its vocabulary and its start goes on from there.
                    shutil.copytree(directory / "first" / "vocabulary", directory / "second" / "vocabulary")
                    shutil.copytree(directory / "first" / "train" / "final", directory / "second" / "start")
                    train(directory / "second", store, (term, related), options.steps)
                else:
                    print(f"3. Add the pair {term} – {related} to its related words", flush=True)
                    add(store, (term, related))
                print(f"   took {time.monotonic() - started:.1f} s", flush=True)
                print("4. It was published as stable; the service sees it at its next poll", flush=True)
                while (info := httpx.get(f"{server.url}/info", timeout=None).json()["versions"])["serving"] == first:
                    if info["last_failure"]:
                        sys.exit(f"the service refuses it: {info['last_failure']}")
                    time.sleep(0.05)
                second = show(server, term, related)
                while not client.answers[200, second]:
                    time.sleep(0.05)
            finally:
                client.stop()
        print("5. What the client saw")
        for (status, version), count in sorted(client.answers.items()):
            print(f"   {count} answers {status} from {version}")
        if {status for status, _ in client.answers} != {200} or len(client.answers) != 2:
            sys.exit("a request failed, or the client did not see both versions")


if __name__ == "__main__":
    main()
