"""The app as an MCP server, asked by the protocol's own client."""

import asyncio

import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

from tests.helpers.space import AppServer


TOOLS = ("text_to_3d", "image_to_3d", "hallucinate", "resume", "extract_mesh", "status", "stop")


@pytest.fixture(scope="module")
def served(tiny_prior, tmp_path_factory):
    with AppServer(tmp_path_factory.mktemp("app"), tiny_prior) as server:
        yield server


def ask(served, question):
    """What `question`, a coroutine function of a session, returns."""

    async def asking():
        async with streamablehttp_client(f"{served.url}/gradio_api/mcp/") as (read, write, _):
            async with ClientSession(read, write) as session:
                await session.initialize()
                return await question(session)

    return asyncio.run(asking())


def test_tools_are_the_endpoints_with_their_documentation(served):
    tools = {tool.name: tool for tool in ask(served, lambda session: session.list_tools()).tools}
    by_endpoint = {name: next((t for key, t in tools.items() if key.endswith(name)), None) for name in TOOLS}
    assert all(by_endpoint.values()) and len(tools) == len(TOOLS), list(tools)
    text = by_endpoint["text_to_3d"]
    assert text.description.startswith("Optimize a 3D object for a prompt.")
    assert text.inputSchema["properties"]["prompt"]["description"].startswith("Object to generate")


def test_a_prompt_becomes_a_model(served):
    async def make(session):
        name = next(t.name for t in (await session.list_tools()).tools if t.name.endswith("text_to_3d"))
        return await session.call_tool(name, {"prompt": "a red mushroom", "seed": 3, "steps": 10})

    result = ask(served, make)
    assert not result.isError
    texts = [item.text for item in result.content if item.type == "text"]
    assert "finished" in texts[0] and any(".glb" in text for text in texts), texts
