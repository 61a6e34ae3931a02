"""A stand-in for the Hugging Face Hub on this machine: what its own client asks for, in memory."""

import base64
import hashlib
import json
import re
from collections import Counter

from huggingface_hub.utils.sha import git_hash
from werkzeug import Request, Response

TOKEN = "hf_for_these_tests"


class HubStandIn:
    """Repositories in memory behind a `pytest-httpserver`, as the real client talks to the Hub.

    `fail`: path pattern -> status with which such a request is answered; `asked`: counts of
    (method, endpoint); `damage`: name of a file of which another content is stored.
    """

    def __init__(self, server, namespaces=("ada",)):
        self.url = server.url_for("").rstrip("/")
        self.namespaces, self.repos, self.blobs = namespaces, {}, {}
        self.fail, self.damage, self.asked = {}, "", Counter()
        server.expect_request(re.compile(".*")).respond_with_handler(self.answer)

    def answer(self, request: Request) -> Response:
        path, method = request.path, request.method
        for pattern, status in self.fail.items():
            if re.search(pattern, f"{method} {path}"):
                return refused(status, "as the test wants it")
        rules = (
            (r"/api/whoami-v2", self.whoami),
            (r"/api/validate-yaml", lambda request: answered({})),
            (r"/api/repos/create", self.create),
            (r"/api/models/([^/]+/[^/]+)/preupload/main", self.preupload),
            (r"/api/models/([^/]+/[^/]+)/commit/main", self.commit),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.batch),
            (r"/stored/([0-9a-f]{64})", self.store),
            (r"/api/models/([^/]+/[^/]+)/tree/[^/]+", self.tree),
            (r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", self.info),
            (r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.resolve),
        )
        for pattern, rule in rules:
            if match := re.fullmatch(pattern, path):
                self.asked[method, rule.__name__] += 1
                allowed = request.headers.get("Authorization") == f"Bearer {TOKEN}"
                if not allowed and rule not in (self.store, self.resolve):
                    return refused(401, "Invalid credentials")
                return rule(request, *match.groups())
        return refused(404, f"the stand-in has no {method} {path}")

    def whoami(self, request):
        return answered({"type": "user", "name": "ada", "orgs": [], "auth": {}})

    def create(self, request):
        asked = request.get_json()
        owner = asked["organization"] or "ada"
        if owner not in self.namespaces:
            return refused(403, f"You don't have the rights to create a model under {owner}")
        repo = f"{owner}/{asked['name']}"
        attributes = {".gitattributes": (b"*.safetensors filter=lfs\n", False)}
        private = asked.get("visibility") == "private"
        self.repos[repo] = {"private": private, "files": attributes, "commits": ["0" * 40]}
        return answered({"url": f"{self.url}/{repo}", "id": repo})

    def preupload(self, request, repo):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in request.get_json()["files"]
        ]
        return answered({"files": files})

    def batch(self, request, repo):
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.url}/stored/{o['oid']}"}}}
            for o in request.get_json()["objects"]
        ]
        return answered({"transfer": "basic", "objects": objects})

    def store(self, request, digest):
        if hashlib.sha256(request.data).hexdigest() != digest:
            return refused(400, "the content has another digest")
        self.blobs[digest] = request.data
        return answered({})

    def commit(self, request, repo):
        lines = [json.loads(line) for line in request.data.splitlines()]
        added = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                added[value["path"]] = (base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                added[value["path"]] = (self.blobs[value["oid"]], True)
        if self.damage:
            content, lfs = added[self.damage]
            added[self.damage] = (content + b" ", lfs)
        self.repos[repo]["files"] |= added
        made = hashlib.sha1(request.data).hexdigest()
        self.repos[repo]["commits"].append(made)
        url = f"{self.url}/{repo}/commit/{made}"
        return answered({"commitUrl": url, "commitOid": made, "success": True})

    def info(self, request, repo):
        if repo not in self.repos:
            return refused(404, "Repository not found", "RepoNotFound")
        at = self.repos[repo]
        files = [self.described(name, *file) for name, file in sorted(at["files"].items())]
        about = {"id": repo, "sha": at["commits"][-1], "private": at["private"], "tags": []}
        return answered({**about, "downloads": 0, "likes": 0, "siblings": files})

    def described(self, name, content, lfs):
        about = {"rfilename": name, "size": len(content), "blobId": git_hash(content)}
        if lfs:
            digest = hashlib.sha256(content).hexdigest()
            about["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
        return about

    def tree(self, request, repo):
        files = sorted(self.repos[repo]["files"].items())
        return Response(
            json.dumps([self.in_tree(name, *file) for name, file in files]),
            content_type="application/json",
        )

    def in_tree(self, name, content, lfs):
        about = {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}
        if lfs:
            digest = hashlib.sha256(content).hexdigest()
            about["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        return about

    def resolve(self, request, repo, name):
        files = self.repos[repo]["files"]
        if name not in files:
            return refused(404, "Entry not found", "EntryNotFound")
        content, lfs = files[name]
        etag = hashlib.sha256(content).hexdigest() if lfs else git_hash(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": self.repos[repo]["commits"][-1]}
        return Response(content, headers=headers)


def answered(value):
    return Response(json.dumps(value), content_type="application/json")


def refused(status, message, code=""):
    headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
    return Response(
        json.dumps({"error": message}), status, headers, content_type="application/json"
    )
