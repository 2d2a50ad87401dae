"""Carries a plan out: what exists is left alone, what changed is replaced, what is missing is made."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from app.opensearch.cluster import Body, Cluster, RequestFailed
from app.opensearch.facts import OpenSearchError
from app.opensearch.plan import Plan, Resource
from app.opensearch.resources import ML, NAMED, WITH_ID, Found, find, find_all, fingerprint, marked
from app.opensearch.settings_record import to_apply, to_restore

CHUNK_BYTES = 10_000_000  # what OpenSearch's own client takes for one
POLL_SECONDS = 0.2

T = TypeVar("T")


class Runner:
    """Sets up and tears down one set-up, `owner`, on a cluster; `say` is told each thing that is done."""

    def __init__(
        self,
        cluster: Cluster,
        owner: str,
        say: Callable[[str], None],
        *,
        dry_run: bool = False,
        timeout_seconds: float = 120.0,
    ) -> None:
        """`dry_run`: requests that change something are said and not sent; `timeout_seconds` for each wait."""
        self._cluster = cluster
        self._owner = owner
        self._say = say
        self._dry_run = dry_run
        self._timeout_seconds = timeout_seconds

    def set_up(self, plan: Plan) -> bool:
        """True if anything had to be done.

        :raises OpenSearchError: if something stands in the way, or does not work.
        """
        changed = self._apply_settings(plan)
        ids: dict[str, str] = {}
        for resource in plan.resources:
            body = _resolve(resource.body, ids)
            ids[resource.reference], made = self._ensure(resource, body)
            changed |= made
        for stale in find_all(self._cluster, self._owner):
            if stale.id not in ids.values():
                self._delete(stale)
                changed = True
        return changed

    def tear_down(self) -> bool:
        """Removes what `set_up` made and puts the cluster settings back; False if there was nothing.

        :raises OpenSearchError: if an index still uses it.
        """
        found = find_all(self._cluster, self._owner)
        if users := self._indices():
            raise OpenSearchError(
                f"{', '.join(users)} still use the pipelines of {self._owner}, so nothing was removed: delete these "
                'indices, or put their settings {"index.default_pipeline": "_none", "index.search.default_pipeline": '
                '"_none"} first'
            )
        for one in found:
            self._delete(one)
        restored = to_restore(self._owner, self._cluster.facts())
        if restored is not None:
            self._write("PUT", "/_cluster/settings", {"persistent": restored})
            self._done(f"restored cluster settings: {', '.join(sorted(restored))}")
        return bool(found) or restored is not None

    def _apply_settings(self, plan: Plan) -> bool:
        body = to_apply(plan.settings, self._owner, self._cluster.facts())
        if body is None:
            self._say("unchanged cluster settings")
            return False
        for setting in plan.settings:
            value = f"+= {setting.value[-1]}" if isinstance(setting.value, list) else f"= {json.dumps(setting.value)}"
            self._say(f"cluster setting {setting.key} {value}: {setting.why}")
        self._write("PUT", "/_cluster/settings", {"persistent": body})
        return True

    def _ensure(self, resource: Resource, body: Mapping[str, Any]) -> tuple[str, bool]:
        """The id of what is there in the end, and whether something was done for it."""
        print_ = fingerprint(resource, body)
        found = find(self._cluster, resource.kind, resource.name)
        if same := next((f for f in found if f.owner == self._owner and f.fingerprint == print_), None):
            deployed = resource.kind != "model" or same.state == "DEPLOYED"
            if not deployed:
                self._deploy(same.id)
            self._say(f"{'unchanged' if deployed else 'deployed'} {resource.kind} {resource.name}")
            return same.id, not deployed
        if foreign := [f for f in found if f.owner != self._owner]:
            raise OpenSearchError(
                f"there is a {resource.kind} {resource.name} (id {foreign[0].id}) that was not made by this set-up, so "
                "it was left alone: choose another --name"
            )
        id_ = self._create(resource, marked(resource.kind, body, self._owner, print_))
        self._done(f"{'replaced' if found else 'created'} {resource.kind} {resource.name}")
        return id_, True

    def _create(self, resource: Resource, body: Mapping[str, Any]) -> str:
        if resource.kind in NAMED:
            self._write("PUT", f"{NAMED[resource.kind]}/{resource.name}", body)
            return resource.name
        if resource.tokenizer:
            return self._upload(resource, body, resource.tokenizer)
        path, create, id_name = WITH_ID[resource.kind]

        def unless_no_key_yet() -> Any:
            try:
                return self._write("POST", path + create, body)
            except RequestFailed as error:
                if "master key has not been initialized" in error.reason:  # in the first seconds of a cluster
                    return None
                raise

        answer = self._wait(f"the key that encrypts a {resource.kind}", unless_no_key_yet)
        id_ = str(answer.get(id_name, resource.reference))
        if resource.kind == "model":
            self._wait_until_deployed(id_)
        return id_

    def _upload(self, resource: Resource, body: Mapping[str, Any], content: bytes) -> str:
        chunks = [content[start : start + CHUNK_BYTES] for start in range(0, len(content), CHUNK_BYTES)]
        meta = {
            **body,
            "total_chunks": len(chunks),
            "model_content_size_in_bytes": len(content),
            "model_content_hash_value": hashlib.sha256(content).hexdigest(),
        }
        id_ = str(self._write("POST", f"{ML}/models/_register_meta", meta).get("model_id", resource.reference))
        for number, chunk in enumerate(chunks):
            self._write("POST", f"{ML}/models/{id_}/upload_chunk/{number}", chunk)
        self._deploy(id_)
        return id_

    def _deploy(self, model_id: str) -> None:
        self._write("POST", f"{ML}/models/{model_id}/_deploy")
        self._wait_until_deployed(model_id)

    def _wait_until_deployed(self, model_id: str) -> None:
        def deployed() -> bool | None:
            model = self._cluster.request("GET", f"{ML}/models/{model_id}")
            if model["model_state"] == "DEPLOY_FAILED":
                raise OpenSearchError(
                    f"model {model['name']} ({model_id}) was not deployed: POST {ML}/models/{model_id}/_deploy and "
                    f"GET {ML}/tasks/<the task that it names> say why"
                )
            return True if model["model_state"] == "DEPLOYED" else None

        if not self._dry_run:
            self._wait(f"the deployment of model {model_id}", deployed)

    def _delete(self, found: Found) -> None:
        if found.kind == "model":
            self._write("POST", f"{found.path}/_undeploy")

        def unless_in_use() -> Any:
            try:
                return self._write("DELETE", found.path)
            except RequestFailed as error:
                # The parts of an uploaded model go some time after it, and keep its group as long.
                if found.kind == "model group" and error.status == 409:
                    return None
                raise

        self._wait(f"the end of what uses {found.kind} {found.name}", unless_in_use)
        self._done(f"removed {found.kind} {found.name}")

    def _indices(self) -> list[str]:
        """Those whose default pipelines are ours."""
        settings = self._cluster.request("GET", "/_all/_settings/index.*default_pipeline?flat_settings=true")
        return sorted(name for name, index in settings.items() if self._owner in index["settings"].values())

    def _write(self, method: str, path: str, body: Body = None) -> Any:
        if not self._dry_run:
            return self._cluster.request(method, path, body)
        if body and not isinstance(body, bytes) and "credential" in body:
            body = {**body, "credential": "<not shown>"}
        shown = (
            f"<{len(body)} bytes>"
            if isinstance(body, bytes)
            else body and json.dumps(body, indent=2, ensure_ascii=False)
        )
        self._say(f"{method} {path}" + (f"\n{shown}" if shown else ""))
        return {}

    def _done(self, line: str) -> None:
        self._say(f"would be: {line}" if self._dry_run else line)

    def _wait(self, what: str, ask: Callable[[], T | None]) -> T:
        """The first answer of `ask` that is not None."""
        deadline = time.monotonic() + self._timeout_seconds
        while (answer := ask()) is None:
            if time.monotonic() > deadline:
                raise OpenSearchError(f"{what} took more than {self._timeout_seconds:.0f} s: look at the node's log")
            time.sleep(POLL_SECONDS)
        return answer


def _resolve(value: Any, ids: Mapping[str, str]) -> Any:
    """`value` with ids in place of references."""
    if isinstance(value, str):
        return ids.get(value, value)
    if isinstance(value, Mapping):
        return {key: _resolve(item, ids) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, ids) for item in value]
    return value
