"""From a model's name to an open answer of an inference server. Bytes go through untouched, both ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated
from urllib.parse import quote

import httpx2
import msgspec
from msgspec import Meta

from services.api.aliases.traffic import Traffic
from services.api.gateway.model_names import Meaning, ModelNames
from services.api.gateway.outgoing import ANSWERED_BY, Asking, Endpoint, OnSent
from services.api.gateway.replicas import Replicas
from services.api.gateway.request_limits import check_request
from services.api.gateway.watching import Watch, watched
from shared.errors import InvalidRequest, NoReplica, NotFound
from shared.model_defaults import with_defaults
from shared.model_records import Access
from shared.rewriting import with_fields, with_text


class _TemplateValues(msgspec.Struct, frozen=True):
    chat_template: msgspec.Raw = msgspec.Raw(b"null")


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway reads of a request; the rest is between client and model."""

    model: str
    stream: bool | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    """Not OpenAI's. A client may ask to be answered later than others, not earlier."""
    chat_template: msgspec.Raw = msgspec.Raw(b"null")
    chat_template_kwargs: _TemplateValues | None = None
    cache_salt: msgspec.Raw = msgspec.Raw(b"null")

    def __post_init__(self) -> None:
        """Raises InvalidRequest for a template of the client's, which the inference server would run, and for a salt of
        its own, with which it could reach what other projects have in the cache."""
        if bytes(self.cache_salt) != b"null":
            raise InvalidRequest(
                "This server chooses 'cache_salt' itself, one for each project; leave it out.",
                code="unsupported_parameter",
                param="cache_salt",
            )
        if bytes(self.chat_template) != b"null":
            raise _foreign_template("chat_template")
        if self.chat_template_kwargs is not None and bytes(self.chat_template_kwargs.chat_template) != b"null":
            raise _foreign_template("chat_template_kwargs.chat_template")


def _foreign_template(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"Requests bring no chat template of their own; leave '{param}' out. The owner of a fine-tuned model may set "
        "one for it, at /v1/models/{model}/settings.",
        code="unsupported_parameter",
        param=param,
    )


VIEW_DECODER = msgspec.json.Decoder(View)


class Gateway:
    """Sends requests to the models that names stand for."""

    def __init__(
        self, names: ModelNames, replicas: Replicas, traffic: Traffic, *, salt_of: Callable[[str], str] = lambda _: ""
    ) -> None:
        """`salt_of` gives the salt of a project's prompts in the engines' prefix caches."""
        self._salt_of = salt_of
        self._names = names
        self._replicas = replicas
        self._traffic = traffic

    async def open(
        self,
        endpoint: Endpoint,
        body: bytes,
        *,
        model: str,
        access: Access,
        request_id: str,
        priority: int = 0,
        sticky: str = "",
        on_sent: OnSent | None = None,
    ) -> httpx2.Response:
        """Return a replica's successful answer, its body not read yet; the caller closes it.

        The body goes out as it is; only an alias is replaced by the model it stands for, what the model's owner has
        set stands in for what the client leaves out, and the project's salt is added. `on_sent` is told the body as it
        goes out. Of the requests that wait for an engine those with the smallest `priority` come first; a negative one
        counts as 0. `sticky` stands for the user of a request that names none, where an alias has two models; without
        it each request is drawn anew. The answer's header ANSWERED_BY names the model.

        Raises NotFound for a model that the key does not see, InvalidRequest for one that cannot answer at this
        endpoint and for a body that asks for too much at once, NoReplica, and UpstreamError for the replica's own.
        """
        check_request(body)
        meaning = await self._names.look_up(model, access)
        asking = Asking(
            endpoint=endpoint,
            body=body,
            model=model,
            request_id=request_id,
            priority=max(priority, 0),
            sticky=sticky or request_id,
            on_sent=on_sent,
            project=access.project,
            salt=self._salt_of(access.project),
        )
        if meaning.alias is None:
            return await self._open_at(meaning, asking)
        return await self._traffic.open(meaning.alias, meaning, asking, self._open_at)

    async def _open_at(self, meaning: Meaning, asking: Asking) -> httpx2.Response:
        """Ask one model. Raises as open() does."""
        watch = Watch(asking, meaning.target)
        try:
            response = await self._ask(meaning, asking, watch)
        except BaseException as error:
            watch.failed(error)
            raise
        return watched(response, watch)

    async def _ask(self, meaning: Meaning, asking: Asking, watch: Watch) -> httpx2.Response:
        choices = await self._replicas.able(
            meaning, asking.endpoint, asked_for=asking.model, at_leisure=asking.at_leisure
        )
        body = asking.body
        if meaning.target != asking.model:
            body = with_fields(body, model=meaning.target)
        if meaning.settings is not None:
            body = with_defaults(asking.endpoint, body, meaning.settings)
        if asking.on_sent is not None:
            asking.on_sent(body)
        if asking.salt:
            body = with_text(body, "cache_salt", asking.salt)
        response = await self._replicas.send(choices, body, asking, watch.headers)
        response.headers[ANSWERED_BY] = quote(meaning.target, safe="/:@+=,~")
        return response

    async def is_away(self, endpoint: Endpoint, *, model: str, access: Access) -> bool:
        """Tell whether a request would meet no replica now; one that is refused for another reason would not."""
        try:
            meaning = await self._names.look_up(model, access)
            await self._replicas.able(meaning, endpoint, asked_for=model)
        except NoReplica:
            return True
        except (NotFound, InvalidRequest):
            return False
        return False

    async def close(self) -> None:
        await self._replicas.close()
