"""A server of the tests' own internet: HTTP that echoes on 80 and 8080, a line echo on 443 and 22. Run by a container's python3."""

import asyncio


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    body = b"web saw: " + head
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(b"web saw: " + line)
        await writer.drain()
    writer.close()


async def main() -> None:
    for port in (80, 8080):
        await asyncio.start_server(http, "0.0.0.0", port)
    for port in (443, 22):
        await asyncio.start_server(echo, "0.0.0.0", port)
    print("ready", flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
