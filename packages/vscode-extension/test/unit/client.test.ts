/** What the API's client does with answers that are not the API's. */
import { type Server, createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, expect, test } from "vitest";
import { Api } from "../../src/api/client.js";

const servers: Server[] = [];

afterEach(async () => {
  await Promise.all(servers.splice(0).map((server) => new Promise((resolve) => server.close(resolve))));
});

/** A server that answers everything alike, and remembers what it was asked. */
async function answering(status: number, headers: Record<string, string>): Promise<{ url: string; asked: string[] }> {
  const asked: string[] = [];
  const server = createServer((request, response) => {
    asked.push(`${String(request.method)} ${String(request.url)} ${String(request.headers["x-api-key"])}`);
    response.writeHead(status, { Connection: "close", ...headers }).end("{}");
  });
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { url: `http://127.0.0.1:${String((server.address() as AddressInfo).port)}`, asked };
}

test.each([301, 302, 307, 308])("a redirect (%i) does not take the key to another host", async (status) => {
  const elsewhere = await answering(200, { "Content-Type": "application/json" });
  const { url, asked } = await answering(status, { Location: `${elsewhere.url}/api/machines/m/heartbeat` });
  const api = new Api({ url, timeoutMs: 10_000, key: () => Promise.resolve("secret") });
  await expect(api.machineHeartbeat("m")).rejects.toMatchObject({
    kind: "unreachable",
    message: `${url} redirects to ${elsewhere.url}/api/machines/m/heartbeat: set the API's own address`,
  });
  expect(asked).toEqual(["POST /api/machines/m/heartbeat secret"]);
  expect(elsewhere.asked).toEqual([]);
});
