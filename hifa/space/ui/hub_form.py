"""Form below a result that pushes the result to the Hub.

The form uses the visitor's own token once and does not store the token. On a Space with OAuth the token comes from
signing in with the scope `contribute-repos`, which limits the app to repositories that the app created. Elsewhere the
token comes from a password box, or from `HF_TOKEN` if the visitor is on the server machine.
"""

import html
import os
import shutil
from pathlib import Path
from typing import Any

import gradio as gr

from ...export.hub import LICENSES, HubError, add_mesh_row, check_repo_id, model_card, push_folder
from ...optimization.run import HiFARun
from ..jobs.exports import existing, plain_name
from ..jobs.models import ModelCache
from ..jobs.run_store import Record, RunFolder, RunStore
from ..jobs.worker import current
from .events import afterwards
from .requests import user_errors


# An id of its own: events with the same id share the lowest of their limits.
UPLOAD = {"concurrency_id": "hub", "concurrency_limit": 4}
PATIENCE = 2.0  # seconds to wait for the lock of the run
LOCAL = {"127.0.0.1", "localhost", "::1"}
PROXIES_SAY = ("x-forwarded-for", "x-forwarded-host", "x-real-ip", "forwarded", "via")


class HubForm:
    """Form for a push to the Hub. The constructor adds it to the current `gr.Blocks` context.

    Args:
        store: Store of the runs.
        model_cache: Cache of the priors.
        place: Column for the form, visible while there is a run to push. The result of a push is shown below the
            column and stays visible.
        endpoint: URL of the Hub. Default: the public Hub.
    """

    def __init__(self, store: RunStore, model_cache: ModelCache, place: gr.Column, endpoint: str | None = None):
        self.store, self.model_cache, self.endpoint = store, model_cache, endpoint
        # Without OAuth, Gradio refuses to launch a page with a login button.
        self.oauth = bool(os.environ.get("OAUTH_CLIENT_ID"))
        with place, gr.Accordion("Push to the Hub", open=False, elem_id="hub-form"):
            if self.oauth:
                gr.LoginButton(elem_id="hub-login")
            self.token = gr.Textbox(
                label="Token", type="password", visible=not self.oauth, max_length=200, elem_id="hub-token",
                info="With write access, from hf.co/settings/tokens. Used once and not stored."
                + (" If empty, HF_TOKEN is used on your own machine." if os.environ.get("HF_TOKEN") else ""),
            )  # fmt: skip
            with gr.Row():
                self.repo = gr.Textbox(
                    label="Repository", placeholder="me/red-mushroom", max_length=200, elem_id="hub-repo",
                    info="Empty: add the row to the dataset only.",
                )  # fmt: skip
                self.license = gr.Dropdown(list(LICENSES), value="cc-by-4.0", label="License", elem_id="hub-license")
            self.dataset = gr.Textbox(
                label="Also add a row to a dataset of meshes", placeholder="me/my-meshes (optional)", max_length=200,
                elem_id="hub-dataset",
            )  # fmt: skip
            self.private = gr.Checkbox(True, label="Private", elem_id="hub-private")
            self.push = gr.Button("Push", elem_id="hub-push")
        self.result = gr.HTML(elem_id="hub-result")

    def wire(self, run_id: gr.State) -> None:
        """Connect the events of the form.

        Args:
            run_id: Id of the run in the result panel.
        """
        inputs = [run_id, self.repo, self.private, self.license, self.dataset, self.token]
        # Gradio passes the OAuth token of the visitor if the signature of the handler has a parameter for the token.
        handler = self.push_signed_in if self.oauth else self.push_with_token
        pushed = self.push.click(
            handler, inputs, self.result, show_progress_on=self.push, api_visibility="private", **UPLOAD
        )
        # Clear the result of the previous run.
        run_id.change(
            lambda: "", None, self.result, queue=False, show_progress="hidden", api_visibility="private"
        )  # fmt: skip
        # Remove the token from the page after the push.
        afterwards(pushed, lambda: "", None, self.token, queue=False, show_progress="hidden", api_visibility="private")

    def push_signed_in(
        self, run_id: str, repo: str, private: bool, license: str, dataset: str, token: str,
        visitor: gr.OAuthToken | None,
    ) -> str:  # fmt: skip
        """Push a run with the OAuth token of the visitor, and return the result as HTML."""
        if visitor is None:
            raise gr.Error("Sign in to Hugging Face first, with the button above.", print_exception=False)
        return self._push(run_id, repo, private, license, dataset, visitor.token)

    def push_with_token(
        self, run_id: str, repo: str, private: bool, license: str, dataset: str, token: str, request: gr.Request
    ) -> str:
        """Push a run with the entered token or the server's own token, and return the result as HTML."""
        token = (token or "").strip() or own_token(request)
        if not token:
            raise gr.Error("Enter a token with write access, from hf.co/settings/tokens.", print_exception=False)
        return self._push(run_id, repo, private, license, dataset, token)

    def _push(self, run_id: str, repo: str, private: bool, license: str, dataset: str, token: str) -> str:
        with user_errors():
            if not run_id:
                raise HubError("There is no run to push. Generate an object first.")
            repo, dataset = ((name or "").strip() and check_repo_id(name) for name in (repo, dataset))
            if not repo and not dataset:
                raise HubError("Name a repository, such as me/red-mushroom, or a dataset of meshes, or both.")
            if license not in LICENSES:
                raise HubError(f"Unknown license {license!r}. Choose one of {', '.join(LICENSES)}.")
            folder = self.store.open(run_id)
            options = {"private": bool(private), "token": token, "endpoint": self.endpoint}
            # The lock prevents changes to the run and its files during the upload.
            with folder.locked(PATIENCE):
                record = current(folder, folder.read(), held=True)
                check_complete(folder, record)
                links, problem = [], ""
                if repo:
                    links.append(push_run(folder, record, self.prior_license(record), repo, license, **options))
                if dataset:
                    try:
                        links.append(push_row(folder, record, dataset, license, **options))
                    except HubError as error:
                        if not links:
                            raise
                        problem = f"The mesh is not in {dataset} yet: {error} To try again, leave Repository empty."
        return pushed_html(record.request.prompt or "The asset", links, problem)

    def prior_license(self, record: Record) -> str:
        """Return the license of the prior that guided a run, for the model card."""
        if not record.request.prompt or record.request.prior not in self.model_cache.priors:
            return "no prior was used"
        prior = self.model_cache.priors[record.request.prior]
        return f"{prior.license}, {prior.license_url}"


def check_complete(folder: RunFolder, record: Record) -> None:
    """Check that the mesh and the turntable exist and match the current step of the run.

    Raises:
        HubError: If the mesh or the turntable is missing or stale.
    """
    have = existing(folder, record)
    if "glb" not in have:
        raise HubError("There is no mesh to push yet. Finish or stop the run first.")
    for kind in ("glb", "mp4"):
        if kind not in have or record.made_at[kind] != record.step:
            raise HubError(f"The files do not match step {record.step:,} of the run. Make the files first.")


def own_token(request: gr.Request) -> str:
    """Return `HF_TOKEN` if the request comes from the server machine itself, otherwise an empty string.

    Remote visitors must not write to the Hub with the owner's token. A proxy without forwarding headers looks like a
    local client. Therefore the host and the origin of the page, which browsers send with every request, must be local
    too. This check does not stop a client behind such a proxy that forges these headers, as documented in the README.
    """
    host = _name_of_host(request.headers.get("host") or "")
    page = _name_of_host((request.headers.get("origin") or "").partition("://")[2])
    proxied = "SPACE_ID" in os.environ or any(name in request.headers for name in PROXIES_SAY)
    at_home = {host, page, request.client.host} <= LOCAL and not proxied
    return os.environ.get("HF_TOKEN", "") if at_home else ""


def _name_of_host(address: str) -> str:
    return address.rsplit(":", 1)[0].strip("[]")


def pushed_html(name: str, links: list[str], problem: str) -> str:
    """Return the result of a push as HTML.

    Args:
        name: Name of the run. The page may show a different run by then.
        links: URLs of the repositories.
        problem: Error message; empty if there was no error.
    """
    shown = " and ".join(
        f"<a href='{html.escape(url)}' target='_blank' rel='noopener'>{html.escape(url)}</a>" for url in links
    )
    more = f"<p role='alert'>{html.escape(problem)}</p>" if problem else ""
    return f"<p role='status'>{html.escape(name)} is at {shown}.</p>{more}"


def push_row(folder: RunFolder, record: Record, dataset: str, license: str, **options: Any) -> str:
    """Add the mesh of a run to a dataset.

    Args:
        folder: The run.
        record: Record of the run.
        dataset: Name of the dataset, `user/name`.
        license: License of the mesh, one of `LICENSES`.
        **options: Options of `export.hub.add_mesh_row`: `private`, `token`, `endpoint`.

    Returns:
        URL of the dataset.

    Raises:
        HubError: If the Hub refuses the upload.
    """
    request = record.request
    metadata = {"prompt": request.prompt, "seed": request.seed, "prior": request.prior, "steps": record.step}
    name = f"{plain_name(record)}-{request.seed}"
    return add_mesh_row(
        dataset, existing(folder, record)["glb"], name, metadata | {"license": license, **record.metadata}, **options
    )


def push_run(folder: RunFolder, record: Record, prior_license: str, repo_id: str, license: str, **options: Any) -> str:
    """Upload the asset of a run with its mesh, turntable and stills to a model repository.

    Args:
        folder: The run.
        record: Record of the run.
        prior_license: License of the prior, for the model card.
        repo_id: Name of the repository, `user/name`.
        license: License of the asset, one of `LICENSES`.
        **options: Options of `export.hub.push_folder`: `private`, `token`, `endpoint`.

    Returns:
        URL of the repository.

    Raises:
        HubError: If the Hub refuses the upload or the repository is not empty.
    """
    asset = HiFARun.load(folder.run).asset()
    asset.metadata["prior_license"] = prior_license
    have = existing(folder, record)

    def write_files(path: Path) -> None:
        asset.save_pretrained(path)
        asset.export_stills(path)
        for kind, name in (("glb", "mesh.glb"), ("mp4", "turntable.mp4")):
            if kind in have:
                shutil.copyfile(have[kind], path / name)
        (path / "README.md").write_text(model_card(asset.metadata, repo_id, license, options.get("endpoint")), "utf-8")

    return push_folder(repo_id, write_files, overwrite=False, **options)
