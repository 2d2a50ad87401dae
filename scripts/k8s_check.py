"""Asks a real Kubernetes API server, started for it on loopback, whether it would take every overlay of `k8s/`.

    python scripts/k8s_check.py

Needs kubectl, etcd, and Go for the first time: the API server and the definitions of other projects' resources come
from their Go modules and are kept in the user's cache directory. There is no cluster and no container: nothing runs,
everything is validated as a cluster would (unknown fields, types, values, pod security) with --dry-run=server.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
CACHE = Path.home() / ".cache" / "sparse-encoder"
KUBERNETES = "1.34.4"
NAMESPACE = "sparse-encoder"
START_SECONDS = 120  # the limit of a broken start, not an expectation
#: Go module and version, and where it keeps the definitions that the overlays use.
DEFINITIONS = {
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": (
        "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ),
    "github.com/kedacore/keda/v2@v2.16.1": ("config/crd/bases/keda.sh_scaledobjects.yaml",),
    "github.com/ray-project/kuberay/ray-operator@v1.5.0": ("config/crd/bases/ray.io_rayjobs.yaml",),
    "sigs.k8s.io/jobset@v0.8.2": ("config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml",),
}
#: What must be refused, or the check itself checks nothing: a manifest and a part of the server's reason.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown field": (
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": [{"prot": 1}]}},
        "unknown field",
    ),
    "an unknown field of another project's resource": (
        {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {"name": "a"}, "spec": {"min": 1}},
        "unknown field",
    ),
    "a pod that is not restricted": (
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "a"},
            "spec": {"containers": [{"name": "a", "image": "a"}]},
        },
        "violates PodSecurity",
    ),
}


class CheckFailed(Exception):
    """A tool is missing, or the server refused something. The message says what."""


def run(*command: str | Path, cwd: Path | None = None, given: str | None = None) -> tuple[str, str]:
    """Standard output and error of `command`, which must succeed."""
    parts = [str(part) for part in command]
    done = subprocess.run(parts, cwd=cwd, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckFailed(f"{' '.join(parts[:3])} ... ended with {done.returncode}:\n{done.stderr}")
    return done.stdout, done.stderr


def module_directory(module: str) -> Path:
    """Where Go keeps the files of `module` (name@version); downloaded if they are not there."""
    return Path(json.loads(run("go", "mod", "download", "-json", module)[0])["Dir"])


def kube_apiserver() -> Path:
    """The API server, built from its Go modules once; minutes of processor time."""
    binary = CACHE / f"kube-apiserver-{KUBERNETES}"
    if binary.is_file():
        return binary
    print(f"building kube-apiserver {KUBERNETES}, once", flush=True)
    module = json.loads(run("go", "mod", "download", "-json", f"k8s.io/kubernetes@v{KUBERNETES}")[0])
    wanted = Path(module["GoMod"]).read_text()
    staged = "v0." + KUBERNETES.split(".", 1)[1]
    # The source tree replaces these by its own folders; as modules they are published with this version.
    names = sorted(set(re.findall(r"^\s*(k8s\.io/[\w-]+)\s+v0\.0\.0\s*$", wanted, re.MULTILINE)))
    go = re.findall(r"^go (\S+)", wanted, re.MULTILINE)[0]
    with TemporaryDirectory(prefix="kube-apiserver-") as temporary:
        directory = Path(temporary)
        replaced = "".join(f"replace {name} => {name} {staged}\n" for name in names)
        (directory / "go.mod").write_text(f"module built\ngo {go}\nrequire k8s.io/kubernetes v{KUBERNETES}\n{replaced}")
        (directory / "main.go").write_text(
            '//go:build none\npackage main\nimport _ "k8s.io/kubernetes/cmd/kube-apiserver"\n'
        )
        run("go", "mod", "tidy", cwd=directory)
        version = "k8s.io/component-base/version"
        major, minor, _ = KUBERNETES.split(".")
        variables = {"gitVersion": f"v{KUBERNETES}", "gitMajor": major, "gitMinor": minor}
        flags = " ".join(["-s", "-w", *(f"-X {version}.{name}={value}" for name, value in variables.items())])
        target = "k8s.io/kubernetes/cmd/kube-apiserver"
        run("go", "build", "-trimpath", "-ldflags", flags, "-o", directory / "built", target, cwd=directory)
        CACHE.mkdir(parents=True, exist_ok=True)
        shutil.move(directory / "built", binary)
    return binary


class Kubectl:
    """kubectl for one server; what it only warns about is an error here."""

    def __init__(self, server: str, token: str) -> None:
        # The server has made its own certificate a moment ago, on this machine.
        self._flags = ("--server", server, "--token", token, "--insecure-skip-tls-verify", "--cache-dir", "/dev/null")

    def __call__(self, *arguments: str | Path, given: str | None = None) -> str:
        out, err = run("kubectl", *self._flags, *arguments, given=given)
        if "Warning:" in err:
            raise CheckFailed(err)
        return out

    def would_apply(self, manifests: str) -> str:
        """One line for each object that the server would take."""
        flags = ("--namespace", NAMESPACE, "--dry-run=server", "--validate=strict")
        return self("apply", *flags, "--filename", "-", given=manifests)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def api_server() -> Iterator[Kubectl]:
    """etcd and the API server on loopback, stopped and deleted at the end."""
    binary = kube_apiserver()
    etcd_port, peer_port, port = free_ports(3)
    etcd_url, peer_url = f"http://127.0.0.1:{etcd_port}", f"http://127.0.0.1:{peer_port}"
    token = secrets.token_hex(16)
    with TemporaryDirectory(prefix="k8s-check-") as temporary:
        directory = Path(temporary)
        (directory / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
        run("openssl", "genrsa", "-out", directory / "accounts.key", "2048")
        etcd = ["etcd", "--data-dir", "etcd", "--listen-client-urls", etcd_url, "--advertise-client-urls", etcd_url]
        etcd += ["--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url]
        etcd += ["--initial-cluster", f"default={peer_url}"]
        server = [str(binary), f"--etcd-servers={etcd_url}", "--bind-address=127.0.0.1", f"--secure-port={port}"]
        server += ["--cert-dir=certificates", "--token-auth-file=tokens.csv", "--authorization-mode=RBAC"]
        server += ["--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.0.0.0/24"]
        server += ["--service-account-key-file=accounts.key", "--service-account-signing-key-file=accounts.key"]
        # No controller makes the default service account here, which this plugin would wait for.
        server += ["--disable-admission-plugins=ServiceAccount"]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for command in (etcd, server):
                with (directory / f"{Path(command[0]).name}.log").open("wb") as log:
                    processes.append(subprocess.Popen(command, cwd=directory, stdout=log, stderr=log))
            kubectl = Kubectl(f"https://127.0.0.1:{port}", token)
            try:
                until_it_succeeds(
                    lambda: kubectl("get", "--raw", "/readyz"),
                    goes_on=lambda: all(process.poll() is None for process in processes),
                )
            except CheckFailed as error:
                logs = "\n".join(path.read_text()[-1000:] for path in directory.glob("*.log"))
                raise CheckFailed(f"the API server did not start: {error}\n{logs}") from error
            yield kubectl
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait()


def until_it_succeeds(action: Callable[[], object], goes_on: Callable[[], bool] = lambda: True) -> None:
    """Calls `action` again while it fails; its last failure is raised after `START_SECONDS`, or if not `goes_on()`."""
    limit = time.monotonic() + START_SECONDS
    while True:
        try:
            action()
            return
        except CheckFailed:
            if not goes_on() or time.monotonic() > limit:
                raise
        time.sleep(0.5)


def pods(manifests: str) -> Iterator[dict[str, Any]]:
    """A pod from every pod template, wherever it is: pod security refuses pods, and only warns about templates."""

    def templates(node: object) -> Iterator[dict[str, Any]]:
        if isinstance(node, dict):
            if "containers" in node.get("spec", {}):
                yield node
            for value in node.values():
                yield from templates(value)
        elif isinstance(node, list):
            for value in node:
                yield from templates(value)

    for document in yaml.safe_load_all(manifests):
        for number, template in enumerate(templates(document)):
            metadata = {**template.get("metadata", {}), "name": f"{document['metadata']['name']}-{number}"}
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def check_that_it_refuses(kubectl: Kubectl) -> None:
    for what, (manifest, reason) in REFUSED.items():
        try:
            kubectl.would_apply(json.dumps(manifest))
        except CheckFailed as error:
            if reason not in str(error):
                raise
        else:
            raise CheckFailed(f"{what} was not refused: the server validates less than it should")
        print(f"refused, as it should be: {what}")


def check() -> None:
    missing = [name for name in ("kubectl", "etcd", "go", "openssl") if not shutil.which(name)]
    if missing:
        raise CheckFailed(
            f"needs {', '.join(missing)} (Debian: etcd-server, golang-go, openssl; kubectl of Kubernetes)"
        )
    files = [module_directory(module) / path for module, paths in DEFINITIONS.items() for path in paths]
    with api_server() as kubectl:
        print("server", json.loads(kubectl("version", "--output=json"))["serverVersion"]["gitVersion"])
        for file in files:
            kubectl("create", "--filename", file)
        # kubectl cannot wait for a condition of an object that has no status yet.
        until_it_succeeds(lambda: kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"))
        kubectl("apply", "--validate=strict", "--filename", ROOT / "k8s" / "namespace.yaml")
        check_that_it_refuses(kubectl)
        for overlay in sorted((ROOT / "k8s" / "overlays").iterdir()):
            manifests = run("kubectl", "kustomize", overlay)[0]
            print(f"\n{overlay.name}\n{kubectl.would_apply(manifests)}", end="")
            for pod in pods(manifests):
                print(kubectl.would_apply(json.dumps(pod)), end="", flush=True)


def main() -> int:
    try:
        check()
    except CheckFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
