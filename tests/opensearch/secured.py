"""A node with the security plugin: TLS, users, roles, access control of models; it trusts services of an authority."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from scripts.opensearch_node import ALONE, Node
from scripts.opensearch_parts import find_jdk, with_security
from tests.certificates import Pair, issue, make_authority

VERSION = "2.19.1"
PASSWORD = "for-tests-Only-1"
CONFIGURATION = """\
plugins.security.ssl.transport.pemcert_filepath: node.pem
plugins.security.ssl.transport.pemkey_filepath: node.key
plugins.security.ssl.transport.pemtrustedcas_filepath: authority.pem
plugins.security.ssl.transport.enforce_hostname_verification: false
plugins.security.ssl.http.enabled: true
plugins.security.ssl.http.pemcert_filepath: node.pem
plugins.security.ssl.http.pemkey_filepath: node.key
plugins.security.ssl.http.pemtrustedcas_filepath: authority.pem
plugins.security.authcz.admin_dn: ["CN=admin"]
plugins.security.allow_default_init_securityindex: true
plugins.security.system_indices.enabled: true
plugins.security.system_indices.indices: [{}]
plugins.ml_commons.model_access_control_enabled: true
plugins.ml_commons.connector_access_control_enabled: true
"""

NO_MAPPING = """\
_meta: {type: rolesmapping, config_version: 2}
"""
ML_INDICES = ("config", "connector", "controller", "memory-meta", "model", "model-group", "task")


@dataclass(frozen=True)
class Secured:
    """The node, and what an administrator does there."""

    node: Node
    authority: Path  #: certificate, PEM
    admin: httpx.Client  #: who may do anything, by a client certificate

    @property
    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority)

    def apply(self, roles: Path) -> None:
        """The file that `python -m app.opensearch roles` writes."""
        answer = self.admin.patch("/_plugins/_security/api/roles", content=roles.read_bytes())
        assert answer.is_success, answer.text

    def put(self, kind: str, name: str, body: Mapping[str, Any]) -> None:
        answer = self.admin.put(f"/_plugins/_security/api/{kind}/{name}", json=body)
        assert answer.is_success, answer.text

    def user(self, name: str, *roles: str, backend_roles: tuple[str, ...] = ()) -> None:
        """With PASSWORD."""
        body = {"password": PASSWORD, "backend_roles": backend_roles, "opendistro_security_roles": roles}
        self.put("internalusers", name, body)


def trust_store(authority: Pair) -> Path:
    """Of the JDK's kind, holding that one certificate."""
    store = authority.certificate.with_name("trust.p12")
    keytool = str(find_jdk(VERSION) / "bin" / "keytool")
    command = [keytool, "-importcert", "-noprompt", "-alias", "service", "-file", str(authority.certificate)]
    subprocess.run([*command, "-keystore", str(store), "-storepass", "changeit"], capture_output=True, check=True)
    return store


@contextmanager
def secured_node(work: Path, service_authority: Pair) -> Iterator[Secured]:
    """Whose nodes trust the services of `service_authority`."""
    config = work / "config"
    config.mkdir(parents=True)
    authority = make_authority(config)
    issue(authority, "node")
    admin = issue(authority, "admin", directory=work)
    home = with_security(VERSION, work / "home")
    shutil.copytree(home / "plugins" / "opensearch-security" / "config", config / "opensearch-security")
    (config / "opensearch-security" / "roles_mapping.yml").write_text(NO_MAPPING)  # everybody would have a role by it
    store = trust_store(service_authority)
    trusting = [f"-Djavax.net.ssl.trustStore={store}", "-Djavax.net.ssl.trustStorePassword=changeit"]
    lines = CONFIGURATION.format(", ".join(f".plugins-ml-{name}" for name in ML_INDICES))
    context = ssl.create_default_context(cafile=authority.certificate)
    context.load_cert_chain(admin.certificate, admin.key)
    node = Node(VERSION, work, home=home, configuration=ALONE + lines, java_options=trusting)
    json = {"Content-Type": "application/json"}
    try:
        with httpx.Client(base_url=node.url, verify=context, timeout=60, headers=json) as client:
            while not client.get("/_plugins/_security/api/roles").is_success:  # it makes its own index first
                time.sleep(0.2)
            yield Secured(node, authority.certificate, client)
    finally:
        node.stop()
