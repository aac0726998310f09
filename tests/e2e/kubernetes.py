"""The manifests of `deploy/kubernetes/`, and its IngressRoutes as Traefik's file provider has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2] / "deploy/kubernetes"


def documents(folder: str) -> list[dict[str, Any]]:
    """Every object that the kustomization of a folder lists as a resource."""
    here = ROOT / folder
    kustomization = yaml.safe_load((here / "kustomization.yaml").read_text())
    files = [here / name for name in kustomization["resources"]]
    return [
        document
        for path in files
        if path.is_file()
        for document in yaml.safe_load_all(path.read_text())
    ]


def named(folder: str, kind: str, name: str) -> dict[str, Any]:
    """The object of this kind and name. In two namespaces: the first."""
    return next(
        each
        for each in documents(folder)
        if each["kind"] == kind and each["metadata"]["name"] == name
    )


def dynamic_configuration(host: str, shim: str, authentik: str, secret: str) -> dict[str, Any]:
    """The IngressRoutes and Middlewares of the base as Traefik's dynamic configuration.

    Names get their namespace, as Traefik gives it to them. shim, authentik: URLs instead of the services'.
    """
    routers: dict[str, Any] = {}
    middlewares: dict[str, Any] = {}
    for each in documents("base"):
        namespace = each["metadata"].get("namespace", "")
        name = f"{namespace}-{each['metadata']['name']}"
        if each["kind"] == "Middleware":
            middlewares[name] = each["spec"]
        elif each["kind"] == "IngressRoute":
            for number, route in enumerate(each["spec"]["routes"]):
                [service] = route["services"]
                routers[f"{name}-{number}"] = {
                    "rule": route["match"].replace("music.example.org", host),
                    "priority": route["priority"],
                    "entryPoints": each["spec"]["entryPoints"],
                    "middlewares": [f"{namespace}-{one['name']}" for one in route["middlewares"]],
                    "service": service["name"],
                }
    forward = middlewares["navidrome-navidrome-authentik"]["forwardAuth"]
    forward["address"] = authentik + forward["address"][forward["address"].index("/outpost") :]
    added = middlewares["navidrome-navidrome-secret"]["headers"]["customRequestHeaders"]
    added["X-Shim-Proxy-Secret"] = secret
    urls = {"navidrome-shim": shim, "authentik-server": authentik}
    services = {name: {"loadBalancer": {"servers": [{"url": url}]}} for name, url in urls.items()}
    return {"http": {"routers": routers, "middlewares": middlewares, "services": services}}
