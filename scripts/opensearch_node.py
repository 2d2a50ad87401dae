"""A real OpenSearch node with its neural plugins, for tests and for trying it out; no container, no installation.

`python -m scripts.opensearch_node 3.6.0 --port 9200`. Server and plugins (ML Commons, k-NN, Neural Search) come from
Maven's central repository (about 450 MB a version, once), are put together in `~/.cache/sparse-encoder`, and run on a
JDK of this machine. It listens on the loopback address only and knows no security: not for production.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from zipfile import ZipFile

CACHE = Path.home() / ".cache" / "sparse-encoder"
RECIPE = 1  # of what is put together; raise it when that changes
VERSIONS = ("2.19.1", "3.6.0")  #: tried; Maven has all four plugins of few versions
LAUNCHER = Path(__file__).with_name("OpenSearchNode.java")
PLUGINS = ("opensearch-job-scheduler", "opensearch-knn", "opensearch-ml-plugin", "neural-search")
#: Module -> artifact and class (without the suffix that differs by version).
MODULES = {
    "transport-netty4": ("transport-netty4-client", "org.opensearch.transport.Netty4"),
    "mapper-extras": ("mapper-extras-client", "org.opensearch.index.mapper.MapperExtras"),
    "lang-painless": ("lang-painless", "org.opensearch.painless.Painless"),
    "analysis-common": ("analysis-common", "org.opensearch.analysis.common.CommonAnalysis"),
    "ingest-common": ("ingest-common", "org.opensearch.ingest.common.IngestCommon"),
    "reindex": ("reindex-client", "org.opensearch.index.reindex.Reindex"),
}
GRPC = {"transport-grpc": ("transport-grpc", "org.opensearch.transport.grpc.GrpcPlugin")}  # 3.x; k-NN needs it
CONFIGURATION = """\
cluster.name: sparse-encoder
node.name: node
discovery.type: single-node
network.host: 127.0.0.1
http.port: {port}
transport.port: 0
path.data: {work}/data
path.logs: {work}/logs
cluster.routing.allocation.disk.threshold_enabled: false
plugins.ml_commons.jvm_heap_memory_threshold: 100
plugins.ml_commons.native_memory_threshold: 100
plugins.ml_commons.disk_free_space_threshold: 100mb
"""
LOGGING = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d{ISO8601}][%-5p][%c{1}] %m%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
"""
JAVA_OPTIONS = (
    "-Xms1g -Xmx1g -Xss1m -Djava.awt.headless=true -Dfile.encoding=UTF-8 -Djna.nosys=true -Dlog4j2.disable.jmx=true "
    "-Dlog4j.shutdownHookEnabled=false -Dio.netty.noUnsafe=true -Dio.netty.noKeySetOptimization=true "
    "-Dio.netty.recycler.maxCapacityPerThread=0 -Dio.netty.allocator.numDirectArenas=0"
)
JAVA_OPTIONS_3 = "--add-modules=jdk.incubator.vector --enable-native-access=ALL-UNNAMED"
LISTENING = re.compile(r"AbstractHttpServerTransport\] publish_address \{(.+?)\}")


class NodeError(Exception):
    """The node cannot be made or started. The message says why, and what to do."""


class MissingTool(NodeError):
    """This machine has no Maven, or no fitting JDK."""


def find_jdk(version: str) -> Path:
    """The home of the oldest JDK here that runs OpenSearch `version`.

    :raises MissingTool: if there is none.
    """
    oldest, newest = (17, 23) if version.startswith("2.") else (21, 99)
    java = shutil.which("java")
    candidates = [Path(home) for name, home in os.environ.items() if name == "JAVA_HOME"]
    candidates += [Path(java).resolve().parent.parent] if java else []
    candidates += [*Path("/usr/lib/jvm").glob("*"), *(Path.home() / ".sdkman/candidates/java").glob("*")]
    fitting = {}
    for home in candidates:
        with suppress(OSError):
            found = re.search(r'^JAVA_VERSION="(\d+)', (home / "release").read_text(), re.MULTILINE)
            if found and oldest <= int(found[1]) <= newest and (home / "bin" / "javac").exists():
                fitting[int(found[1])] = home
    if not fitting:
        raise MissingTool(
            f"OpenSearch {version} needs a JDK (not a JRE) of version {oldest} to {newest}, and there is none in "
            "JAVA_HOME, on the path, or in /usr/lib/jvm: install one (Debian: openjdk-17-jdk, openjdk-21-jdk)"
        )
    return fitting[min(fitting)]


def assemble(version: str) -> Path:
    """The directory of OpenSearch `version`, put together unless it is there already.

    :raises NodeError: if Maven is missing or fails.
    """
    home = CACHE / "opensearch" / f"{version}-recipe{RECIPE}"
    if home.is_dir():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix="making-") as temporary:
        work = Path(temporary)
        with (home.parent / "maven.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a repository of Maven's is for one process at a time
            if home.is_dir():
                return home
            _download(version, work)
        made = _put_together(version, work)
        with suppress(OSError):  # another process was faster
            made.rename(home)
    return home


def _download(version: str, work: Path) -> None:
    """The jars of each part in `work/PART/target/dependency`."""
    core = f"org.opensearch:opensearch:{version}"
    _maven(work, {"core": [core]})
    (log4j_api,) = (work / "core/target/dependency").glob("log4j-api-*.jar")
    log4j = log4j_api.stem.removeprefix("log4j-api-")
    lib = [
        core,
        f"org.opensearch:opensearch-plugin-classloader:{version}",
        f"org.apache.logging.log4j:log4j-core:{log4j}",
        "org.locationtech.spatial4j:spatial4j:0.7",
        "org.locationtech.jts:jts-core:1.15.0",
    ]
    if not version.startswith("2."):
        lib.append("org.bouncycastle:bc-fips:2.1.2")  # ML Commons encrypts with it
    modules = {
        name: [f"org.opensearch.plugin:{artifact}:{version}"] for name, (artifact, _) in _modules(version).items()
    }
    plugins = [f"org.opensearch.plugin:{name}:{version}.0:zip" for name in PLUGINS]
    _maven(work, {"lib": lib, **modules, "plugins": plugins})


def _modules(version: str) -> dict[str, tuple[str, str]]:
    if version.startswith("2."):
        return {name: (artifact, f"{class_}Plugin") for name, (artifact, class_) in MODULES.items()}
    return {**{name: (artifact, f"{class_}ModulePlugin") for name, (artifact, class_) in MODULES.items()}, **GRPC}


def _maven(work: Path, parts: dict[str, list[str]]) -> None:
    """Downloads what each of `parts` needs at run time, by one project with a module for each."""
    maven = shutil.which("mvn")
    if not maven:
        raise MissingTool("OpenSearch is put together by Maven, and there is no mvn on the path: install it")
    for name, coordinates in parts.items():
        (work / name).mkdir(exist_ok=True)
        dependencies = "".join(_dependency(*coordinate.split(":")) for coordinate in coordinates)
        (work / name / "pom.xml").write_text(_project(name, "jar", f"<dependencies>{dependencies}</dependencies>"))
    modules = "".join(f"<module>{name}</module>" for name in parts)
    (work / "pom.xml").write_text(_project("all", "pom", f"<modules>{modules}</modules>"))
    command = [maven, "--quiet", "--batch-mode", f"-Dmaven.repo.local={CACHE / 'maven'}", "-DincludeScope=runtime"]
    done = subprocess.run(
        [*command, "dependency:copy-dependencies"], cwd=work, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NodeError(f"Maven could not download {', '.join(parts)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _project(name: str, packaging: str, content: str) -> str:
    return (
        "<project><modelVersion>4.0.0</modelVersion><groupId>node</groupId>"
        f"<artifactId>{name}</artifactId><version>1</version><packaging>{packaging}</packaging>{content}</project>"
    )


def _dependency(group: str, artifact: str, version: str, type_: str = "jar") -> str:
    alone = "<exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions>"
    return (
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>"
        f"<type>{type_}</type>{alone if type_ == 'zip' else ''}</dependency>"
    )


def _put_together(version: str, work: Path) -> Path:
    home = work / "home"
    shutil.copytree(work / "lib/target/dependency", home / "lib")
    in_lib = {jar.name for jar in (home / "lib").iterdir()}
    java = "11" if version.startswith("2.") else "21"
    for name, (_, class_) in _modules(version).items():
        module = home / "modules" / name
        module.mkdir(parents=True)
        for jar in (work / name / "target/dependency").iterdir():
            if jar.name not in in_lib:  # OpenSearch refuses a jar that it has twice
                shutil.copy(jar, module)
        descriptor = {
            "name": name,
            "description": name,
            "version": version,
            "opensearch.version": version,
            "java.version": java,
            "classname": class_,
            "has.native.controller": "false",
            **({"extended.plugins": "lang-painless"} if name == "ingest-common" else {}),
        }
        lines = "".join(f"{key}={value}\n" for key, value in descriptor.items())
        (module / "plugin-descriptor.properties").write_text(lines)
    for file in (work / "plugins/target/dependency").glob("*.zip"):
        with ZipFile(file) as archive:
            properties = archive.read("plugin-descriptor.properties").decode()
            found = re.search(r"^name=(.+)$", properties, re.MULTILINE)
            assert found, f"{file.name} names no plugin"
            archive.extractall(home / "plugins" / found[1].strip())
    return home


class Node:
    """A running node."""

    def __init__(self, version: str, work: Path, port: int = 0) -> None:
        """Starts it, with its data and log in `work`; port 0 takes a free one.

        :raises NodeError: if it cannot be started.
        """
        self.version = version
        self.url = ""
        self.log = work / "node.log"
        jdk, home = find_jdk(version), assemble(version)
        config = work / "config"
        config.mkdir(parents=True, exist_ok=True)
        (work / "temporary").mkdir(exist_ok=True)
        (config / "opensearch.yml").write_text(CONFIGURATION.format(port=port, work=work))
        (config / "log4j2.properties").write_text(LOGGING)
        options = JAVA_OPTIONS if version.startswith("2.") else f"{JAVA_OPTIONS} {JAVA_OPTIONS_3}"
        java = [str(jdk / "bin" / "java"), *options.split(), f"-Djava.io.tmpdir={work / 'temporary'}"]
        self._process = subprocess.Popen(
            [*java, "-cp", f"{home / 'lib'}/*", str(LAUNCHER), str(home), str(config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._listening_or_gone = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._listening_or_gone.wait()
        if not self.url:
            raise NodeError(f"OpenSearch {version} did not start:\n{self.log.read_text()[-3000:]}")

    def _read(self) -> None:
        assert self._process.stdout
        with self.log.open("w") as log:
            for line in self._process.stdout:
                log.write(line)
                log.flush()
                if found := LISTENING.search(line):
                    self.url = f"http://{found[1]}"
                    self._listening_or_gone.set()
        self._listening_or_gone.set()

    def wait(self) -> None:
        """Until it ends."""
        self._process.wait()

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._ended()

    def kill(self) -> None:
        """As the kernel does when memory is short. Another node with the same `work` has what this one acknowledged."""
        self._process.kill()
        self._ended()

    def _ended(self) -> None:
        self._process.wait()
        self._reader.join()
        assert self._process.stdout
        self._process.stdout.close()


@contextmanager
def running_node(version: str, work: Path, port: int = 0) -> Iterator[Node]:
    """A node for the time of a block.

    :raises NodeError: if it cannot be started.
    """
    node = Node(version, work, port)
    try:
        yield node
    finally:
        node.stop()


def missing_tools(versions: Iterable[str]) -> str | None:
    """What keeps this machine from running OpenSearch; None if nothing does."""
    try:
        for version in versions:
            find_jdk(version)
            if not shutil.which("mvn"):
                assemble(version)
    except MissingTool as error:
        return str(error)
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.opensearch_node", description=__doc__)
    parser.add_argument("version", help=f"tried: {', '.join(VERSIONS)}")
    parser.add_argument("--port", type=int, default=9200, help="default %(default)s; 0 takes a free one")
    parser.add_argument("--data", type=Path, help="directory that keeps its data; without it, they go when it ends")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"OpenSearch {options.version}: the first start downloads about 450 MB", flush=True)
    try:
        with (
            tempfile.TemporaryDirectory() as temporary,
            running_node(options.version, (options.data or Path(temporary)).resolve(), options.port) as node,
        ):
            print(f"OpenSearch {node.version} at {node.url}, log in {node.log}; Ctrl-C ends it", flush=True)
            with suppress(KeyboardInterrupt):
                node.wait()
    except NodeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
