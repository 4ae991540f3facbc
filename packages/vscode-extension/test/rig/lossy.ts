/** A way to the API on which answers get lost: the request arrives, and the connection breaks before the answer. */
import { type IncomingMessage, type Server, createServer } from "node:http";
import type { AddressInfo } from "node:net";

export class LossyWay {
  /** The requests, as “POST /api/tasks”, whose answer was lost. */
  readonly lost: string[] = [];
  private readonly server: Server;

  private constructor(target: string, loses: (request: string) => boolean, isHeld: boolean) {
    this.server = createServer((request, response) => {
      void (async () => {
        const name = `${request.method ?? ""} ${(request.url ?? "").replaceAll(/[0-9a-f]{8}-[0-9a-f-]{27}/g, "ID")}`;
        const body = await bodyOf(request);
        const answer = await fetch(target + (request.url ?? ""), {
          method: request.method ?? "GET",
          headers: { "X-API-Key": String(request.headers["x-api-key"]), "Content-Type": "application/json" },
          ...(body === "" ? {} : { body }),
        });
        const text = await answer.text();
        if (!this.lost.includes(name) && loses(name)) {
          this.lost.push(name);
          if (!isHeld) {
            request.socket.destroy();
          }
          return;
        }
        response.writeHead(answer.status, { "Content-Type": "application/json" }).end(text);
      })();
    });
  }

  /** Loses the first answer to each of these requests; where it is held, the connection stays as if it may come yet. */
  static async to(target: string, requests: readonly string[], isHeld = false): Promise<LossyWay> {
    const way = new LossyWay(target, (request) => requests.includes(request), isHeld);
    await new Promise<void>((resolve) => way.server.listen(0, "127.0.0.1", resolve));
    return way;
  }

  get url(): string {
    return `http://127.0.0.1:${String((this.server.address() as AddressInfo).port)}`;
  }

  async stop(): Promise<void> {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }
}

async function bodyOf(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) {
    chunks.push(chunk as Buffer);
  }
  return Buffer.concat(chunks).toString("utf8");
}
