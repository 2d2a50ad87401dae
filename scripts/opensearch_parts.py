"""What an OpenSearch node consists of, put together from artifacts of Maven's central repository.

Server and plugins (ML Commons, k-NN, Neural Search) lie in `~/.cache/sparse-encoder` then, about 450 MB a version.
3.x has the Korean analyzer `nori` as well.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from zipfile import ZipFile

CACHE = Path.home() / ".cache" / "sparse-encoder"
RECIPE = 2  # of what is put together; raise it when that changes
VERSIONS = ("2.19.1", "3.6.0")  #: tried; Maven has all four plugins of few versions
NORI = Path(__file__).with_name("AnalysisNori.java")
SECURITY = "opensearch-security"
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
    parts = {"lib": lib, **modules, "plugins": plugins}
    if has_nori(version):
        (lucene,) = (work / "core/target/dependency").glob("lucene-core-*.jar")
        nori = f"org.apache.lucene:lucene-analysis-nori:{lucene.stem.removeprefix('lucene-core-')}"
        parts["nori"] = [nori]
    _maven(work, parts)


def has_nori(version: str) -> bool:
    """Of the versions that are tried, some have the plugin and some not, as clusters do."""
    return not version.startswith("2.")


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
        _describe(module, descriptor)
    for file in (work / "plugins/target/dependency").glob("*.zip"):
        _unpack(file, home / "plugins")
    if has_nori(version):
        _make_nori(version, work, home)
    return home


def _describe(plugin: Path, descriptor: dict[str, str]) -> None:
    lines = "".join(f"{key}={value}\n" for key, value in descriptor.items())
    (plugin / "plugin-descriptor.properties").write_text(lines)


def _unpack(file: Path, plugins: Path) -> None:
    with ZipFile(file) as archive:
        properties = archive.read("plugin-descriptor.properties").decode()
        found = re.search(r"^name=(.+)$", properties, re.MULTILINE)
        assert found, f"{file.name} names no plugin"
        archive.extractall(plugins / found[1].strip())


def _make_nori(version: str, work: Path, home: Path) -> None:
    """OpenSearch's own plugin is in no repository of Maven's; Lucene's analyzer is."""
    plugin, classes = home / "plugins" / "analysis-nori", work / "classes"
    plugin.mkdir()
    (jar,) = (work / "nori/target/dependency").glob("lucene-analysis-nori-*.jar")
    shutil.copy(jar, plugin)
    javac = [str(find_jdk(version) / "bin" / "javac"), "-proc:none", "-nowarn"]
    done = subprocess.run(
        [*javac, "-cp", f"{home / 'lib'}/*:{jar}", "-d", str(classes), str(NORI)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NodeError(f"{NORI.name} does not compile with OpenSearch {version}:\n{done.stderr[-2000:]}")
    with ZipFile(plugin / "analysis-nori.jar", "w") as archive:
        for file in classes.rglob("*.class"):
            archive.write(file, file.relative_to(classes))
    _describe(
        plugin,
        {
            "name": "analysis-nori",
            "description": "Korean",
            "version": version,
            "opensearch.version": version,
            "java.version": "21",
            "classname": "node.AnalysisNori",
            "has.native.controller": "false",
        },
    )


def with_security(version: str, home: Path) -> Path:
    """`home`, made as a node's that has the security plugin besides; its configuration is `home/security`."""
    base = assemble(version)
    (home / "plugins").mkdir(parents=True)
    for name in ("lib", "modules"):
        (home / name).symlink_to(base / name)
    for plugin in (base / "plugins").iterdir():
        (home / "plugins" / plugin.name).symlink_to(plugin)
    cached = CACHE / "opensearch" / f"{version}-security-recipe{RECIPE}"
    if not cached.is_dir():
        with tempfile.TemporaryDirectory(dir=cached.parent, prefix="making-") as temporary:
            with (cached.parent / "maven.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                _maven(Path(temporary), {"plugins": [f"org.opensearch.plugin:{SECURITY}:{version}.0:zip"]})
            (file,) = (Path(temporary) / "plugins/target/dependency").glob("*.zip")
            _unpack(file, Path(temporary) / "made")
            with suppress(OSError):  # another process was faster
                (Path(temporary) / "made").rename(cached)
    (home / "plugins" / SECURITY).symlink_to(cached / SECURITY)
    return home


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
