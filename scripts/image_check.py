"""Builds the image, runs its own command as its user on a read-only root without a network, encodes, and stops it.

    python scripts/image_check.py [--base-image IMAGE] [--load] [--twice] [--arch arm64 [--model DIR]]

--twice builds it again and says what differs, byte by byte; two builds of one commit on one base should be equal.
--load also starts it under load: a rolling restart of two behind nginx, and ten times what one can encode.
--arch builds it for another processor and runs it under emulation: qemu-user-static, registered in binfmt_misc with the
flag F. It takes ten minutes, and longer to load the embedded model: --model gives a small artifact to serve instead.

Needs root, buildah, util-linux; and debootstrap, unless --base-image names an image that can be pulled. Nothing of it
needs a container engine or a daemon. The base made by debootstrap is kept in the user's cache directory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parent.parent
CACHE = Path.home() / ".cache" / "sparse-encoder"
CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt"  #: this machine's, for a network that needs others than the base has
)
SUITE = "bookworm"  # its Python is the one of constraints.txt
PACKAGES = "python3,python3-venv,ca-certificates"
TAG, AGAIN = "localhost/sparse-encoder:check", "localhost/sparse-encoder:again"
COPIED = re.compile(r"COPY --from=build ")  #: in the last stage
THIS_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
PROBE = Path(__file__).with_name("image_probe.py")
BENCHMARKS = (  #: with --load
    ("-m", "benchmarks.rolling_restart", "--inside-the-namespace"),
    ("-m", "benchmarks.overload"),
)


class CheckFailed(Exception):
    """The image is not what it should be. The message says in what."""


def run(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """The standard output of `command`; the rest goes to the terminal."""
    parts = [str(part) for part in command]
    done = subprocess.run(parts, stdout=subprocess.PIPE, text=True, check=False, cwd=cwd, env=env)
    if done.returncode:
        raise CheckFailed(f"{' '.join(parts[:4])} ... ended with {done.returncode}: {done.stdout[-2000:]}")
    return done.stdout


class Buildah:
    """buildah with a storage of its own, that leaves nothing behind; chroot isolation needs no kernel feature."""

    def __init__(self, storage: Path) -> None:
        self._flags = ("--storage-driver", "vfs", "--root", storage / "root", "--runroot", storage / "run")
        self._environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}

    def __call__(self, *arguments: str | Path) -> str:
        return run("buildah", *self._flags, *arguments, env=self._environment)

    def show(self, *arguments: str | Path) -> None:
        """Like a call, for long work: its output goes to the terminal as it comes."""
        parts = ["buildah", *map(str, self._flags), *map(str, arguments)]
        if code := subprocess.run(parts, env=self._environment, check=False).returncode:
            raise CheckFailed(f"buildah {arguments[0]} ended with {code}: see above")

    def inspect(self, image: str) -> dict[str, Any]:
        """The image's configuration, with Docker's names (`docker.config.Entrypoint`)."""
        inspected: dict[str, Any] = json.loads(self("inspect", "--type", "image", image))
        return inspected

    @contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        container = self("from", "--pull-never", image).strip()
        try:
            yield Path(self("mount", container).strip())
        finally:
            self("umount", container)
            self("rm", container)


def debian_image(buildah: Buildah, arch: str) -> str:
    """An image of Debian's minimal system with Python, made by debootstrap once."""
    archive = CACHE / f"debian-{SUITE}-{arch}-python.tar"
    if not archive.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="debootstrap-") as temporary:
            tree, log = Path(temporary) / "root", Path(temporary) / "log"
            command = ["debootstrap", f"--arch={arch}", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(tree)]
            with log.open("w") as out:
                failed = subprocess.run(command, stdout=out, stderr=out, check=False).returncode
            if failed:
                raise CheckFailed(f"debootstrap failed: {log.read_text()[-1000:]}")
            for emptied in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man"):
                shutil.rmtree(tree / emptied)
            partial = archive.with_suffix(".partial")
            run("tar", "--create", "--file", partial, "--numeric-owner", "--directory", tree, ".")
            partial.rename(archive)
    container = buildah("from", "--arch", arch, "scratch").strip()
    buildah("add", "--quiet", container, archive, "/")
    tag = f"localhost/debian-{SUITE}-python"
    buildah("config", "--arch", arch, container)
    buildah("commit", "--quiet", "--rm", container, tag)
    return tag


def build(buildah: Buildah, base: str, arch: str, tag: str = TAG) -> None:
    revision, seconds = run("git", "log", "-1", "--format=%H %ct", cwd=ROOT).split()
    arguments = {"BASE_IMAGE": base, "VERSION": "check", "REVISION": revision}
    flags = [part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")]
    if Path(CERTIFICATES).is_file():
        flags.append(f"--volume={CERTIFICATES}:{CERTIFICATES}:ro")
    # The format that knows HEALTHCHECK. One layer for each stage: with vfs, which copies, one for each step is 15 GB.
    flags += ["--arch", arch]
    buildah.show("build", "--format", "docker", "--timestamp", seconds, *flags, "--tag", tag, ROOT)


def differences(first: Path, second: Path) -> list[str]:
    """Paths that are not the same in both trees, and in what."""
    trees = [{str(path.relative_to(root)): path for path in root.rglob("*")} for root in (first, second)]
    found = [f"{name}: only in one" for name in sorted(trees[0].keys() ^ trees[1].keys())]
    for name in sorted(trees[0].keys() & trees[1].keys()):
        before, after = (_facts(tree[name]) for tree in trees)
        if unlike := [fact for fact in before if before[fact] != after[fact]]:
            found.append(f"{name}: {', '.join(unlike)}")
    return found


def _facts(path: Path) -> dict[str, object]:
    status = path.lstat()
    facts: dict[str, object] = {
        "mode": status.st_mode,
        "owner": (status.st_uid, status.st_gid),
        "time": status.st_mtime,
    }
    if path.is_symlink():
        facts["target"] = path.readlink()
    elif path.is_file():
        facts["content"] = sha256(path.read_bytes()).hexdigest()
    return facts


def compare_with_another_build(buildah: Buildah, base: str, arch: str, root: Path) -> None:
    build(buildah, base, arch, AGAIN)
    with buildah.mounted(AGAIN) as again:
        found = differences(root, again)
    digests = {buildah.inspect(tag)["FromImageDigest"] for tag in (TAG, AGAIN)}
    print(f"\nbuilt twice: {len(found)} paths differ, the image is {'the same' if len(digests) == 1 else 'another'}")
    print("\n".join(found[:50]))
    if found:
        raise CheckFailed("two builds of one commit differ: see above")


def print_sizes(root: Path) -> None:
    """Bytes of what each COPY of the Dockerfile's last stage adds, and of the rest: unpacked, and as transferred."""
    copied = [
        line.split()[-1].lstrip("/") for line in (ROOT / "Dockerfile").read_text().splitlines() if COPIED.match(line)
    ]
    parts = {f"/{path}": [path] for path in copied}
    parts["base image"] = [".", *(f"--exclude=./{path}" for path in copied)]
    print("\n  unpacked   as gzip")
    sizes: dict[str, tuple[int, int]] = {}
    for name, arguments in parts.items():
        tar = subprocess.Popen(["tar", "-C", str(root), "-cf", "-", *reversed(arguments)], stdout=subprocess.PIPE)
        assert tar.stdout
        plain, packed, compressor = 0, 0, zlib.compressobj(wbits=31)
        while part := tar.stdout.read(1 << 20):
            plain, packed = plain + len(part), packed + len(compressor.compress(part))
        if tar.wait():
            raise CheckFailed(f"{name} cannot be read")
        sizes[name] = plain, packed + len(compressor.flush())
    sizes["together"] = sum(plain for plain, _ in sizes.values()), sum(packed for _, packed in sizes.values())
    for name, (plain, packed) in sizes.items():
        print(f"{plain / 1e6:7.0f} MB {packed / 1e6:6.0f} MB  {name}")


def check_contents(root: Path, config: Mapping[str, Any]) -> None:
    """What the image says of itself and what must not be in it."""
    expected = {"User": "10001:10001", "StopSignal": "SIGTERM", "Volumes": {"/models": {}}}
    for key, value in expected.items():
        if config.get(key) != value:
            raise CheckFailed(f"{key} is {config.get(key)!r}, expected {value!r}")
    if not isinstance(config["Entrypoint"], list) or config["Entrypoint"][0] == "/bin/sh":
        raise CheckFailed(f"the entry point {config['Entrypoint']!r} is a shell's: SIGTERM would not reach the service")
    unwanted = ("pip", "pip3", "gcc", "cc", "make", "git", "curl", "wget", "conda", "uv")
    folders = ("usr/bin", "bin", "usr/local/bin", "opt/venv/bin")
    found = [f"{folder}/{name}" for folder in folders for name in unwanted if (root / folder / name).exists()]
    found += [str(path.relative_to(root)) for path in root.glob("**/site-packages/*") if path.name in ("pip", "torch")]
    found += [str(path.relative_to(root)) for path in (root / "opt").rglob("training")]
    check_bill_of_materials(root / "opt")
    writable = [path for path in (root / "opt").rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022]
    if found or writable:
        raise CheckFailed(f"the image should not hold {found}; anyone may change {[str(p) for p in writable[:5]]}")


def check_bill_of_materials(opt: Path) -> None:
    """It names every package that is there, in its version, and no other."""
    bill = json.loads((opt / "sparse-encoder" / "sbom.cdx.json").read_text(encoding="utf-8"))
    named = {(_normalised(part["name"]), part["version"]) for part in bill["components"]}
    found = set()
    for path in opt.glob("venv/lib/python3*/site-packages/*.dist-info"):
        name, version = path.name.removesuffix(".dist-info").split("-")
        found.add((_normalised(name), version))
    if not found or named != found:
        raise CheckFailed(f"the bill of materials and the packages differ in {sorted(named ^ found)}")
    licences = (opt / "sparse-encoder" / "licences.txt").read_text(encoding="utf-8")
    blocks = {_normalised(name) for name in re.findall(r"(?:\A|\n)([\w.-]+)\n\d[\w.+-]*\n", licences)}
    if missing := {name for name, _ in found} - blocks:
        raise CheckFailed(f"licences.txt has nothing of {sorted(missing)}")


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def run_as_the_engine_would(root: Path, config: Mapping[str, Any], *program: str) -> None:
    """The probe starts the image's command in namespaces of its own: no network but loopback, no other process.

    With `program` that is started instead, and told the command.
    """
    unshare = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child")
    command = (*unshare, sys.executable, str(PROBE), str(root), json.dumps(config), *program)
    if subprocess.run(command, check=False, cwd=ROOT).returncode:
        raise CheckFailed("the container did not do what it should: see above")


def check(base_image: str | None, arch: str, model: Path | None, load: bool, twice: bool) -> None:
    needed = ["buildah", "unshare", "setpriv", "git", "ip"]
    needed += ["debootstrap"] * (base_image is None) + ["nginx"] * load
    missing = [name for name in needed if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        raise CheckFailed(f"needs root and {', '.join(needed)}; missing: {', '.join(missing) or 'root'}")
    # Every layer is a full copy (vfs): some GB for a while.
    with TemporaryDirectory(prefix="image-check-", dir="/var/tmp") as temporary:
        buildah = Buildah(Path(temporary))
        base = base_image or debian_image(buildah, arch)
        build(buildah, base, arch)
        config = buildah.inspect(TAG)["Docker"]["config"]
        with buildah.mounted(TAG) as root:
            print_sizes(root)
            check_contents(root, config)
            if arch != THIS_ARCH:  # an emulator shows the flags of this machine's processor, not those of its own
                config["Env"] += ["SPARSE_ENCODER_PRECISION=f32"]
            if model:
                shutil.copytree(model, root / "models" / "given")
                config["Env"] += ["SPARSE_ENCODER_MODEL=/models/given"]
            run_as_the_engine_would(root, config)
            if twice:
                compare_with_another_build(buildah, base, arch, root)
            for benchmark in BENCHMARKS if load else ():
                print(f"\n{benchmark[1]}", flush=True)
                run_as_the_engine_would(root, config, *benchmark)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-image", help="an image with Python 3.11 to pull, instead of one made by debootstrap")
    parser.add_argument("--load", action="store_true", help="also start it under load; needs nginx")
    parser.add_argument("--twice", action="store_true", help="also build it again, and compare")
    parser.add_argument("--arch", default=THIS_ARCH, help="of the image, as Debian names it (default %(default)s)")
    parser.add_argument("--model", type=Path, metavar="DIR", help="serve this artifact instead of the embedded model")
    options = parser.parse_args(arguments)
    try:
        check(options.base_image, options.arch, options.model, options.load, options.twice)
    except CheckFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
