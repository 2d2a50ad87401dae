"""A real OpenSearch node with its neural plugins, for tests and for trying it out; no container, no installation.

`python -m scripts.opensearch_node 3.6.0 --port 9200`. Server and plugins come from Maven's central repository (about
450 MB a version, once; see scripts/opensearch_parts.py), and run on a JDK of this machine. It listens on the loopback
address only and knows no security, unless it is told to: not for production.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from scripts.opensearch_parts import VERSIONS, NodeError, assemble, find_jdk

LAUNCHER = Path(__file__).with_name("OpenSearchNode.java")
CONFIGURATION = """\
cluster.name: sparse-encoder
network.host: 127.0.0.1
http.port: {port}
path.data: {work}/data
path.logs: {work}/logs
cluster.routing.allocation.disk.threshold_enabled: false
plugins.ml_commons.jvm_heap_memory_threshold: 100
plugins.ml_commons.native_memory_threshold: 100
plugins.ml_commons.disk_free_space_threshold: 100mb
"""
#: Of a node that is a cluster of its own.
ALONE = """\
node.name: node
discovery.type: single-node
transport.port: 0
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


class Node:
    """A running node."""

    def __init__(
        self,
        version: str,
        work: Path,
        port: int = 0,
        *,
        home: Path | None = None,
        configuration: str = ALONE,
        java_options: Sequence[str] = (),
    ) -> None:
        """Starts it, with its data and log in `work`; port 0 takes a free one.

        `home`: what it runs, if not what `assemble` makes; `configuration`: lines of opensearch.yml besides those that
        every node has, for a node that is not alone, or has more plugins.

        :raises NodeError: if it cannot be started.
        """
        self.version = version
        self.url = ""
        self.log = work / "node.log"
        self._scheme = "https" if "ssl.http.enabled: true" in configuration else "http"
        jdk, home = find_jdk(version), home or assemble(version)
        config = work / "config"
        config.mkdir(parents=True, exist_ok=True)
        (work / "temporary").mkdir(exist_ok=True)
        (config / "opensearch.yml").write_text(CONFIGURATION.format(port=port, work=work) + configuration)
        (config / "log4j2.properties").write_text(LOGGING)
        options = JAVA_OPTIONS if version.startswith("2.") else f"{JAVA_OPTIONS} {JAVA_OPTIONS_3}"
        java = [str(jdk / "bin" / "java"), *options.split(), f"-Djava.io.tmpdir={work / 'temporary'}", *java_options]
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
                    self.url = f"{self._scheme}://{found[1]}"
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
        self._end()

    def kill(self) -> None:
        """As by SIGKILL: nothing is put in order. Another node with the same `work` has what this one acknowledged."""
        self._process.kill()
        self._end()

    def _end(self) -> None:
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
