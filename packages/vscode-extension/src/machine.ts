/** Which machine this is, and telling the API that it lives. */
import { randomUUID } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { hostname, networkInterfaces, platform, release } from "node:os";
import { join } from "node:path";
import { type Api, ApiError } from "./api/client.js";
import type { Log } from "./log.js";

/** Names that many machines have, and so none. */
const NOBODY = new Set(["", "localhost", "localhost.localdomain"]);

export interface IdentitySources {
  hostname(): string;
  macAddresses(): string[];
  uuid(): string;
}

const SYSTEM: IdentitySources = {
  hostname,
  macAddresses: () =>
    Object.values(networkInterfaces())
      .flatMap((addresses) => addresses ?? [])
      .filter((address) => !address.internal && !/^(00:){5}00$/.test(address.mac))
      .map((address) => address.mac)
      .sort(),
  uuid: randomUUID,
};

/**
 * The machine's id (PRD 4.3): its hostname, else a MAC address, else a UUID. What was chosen first is kept in a file,
 * so that a machine stays the same one when its network names it anew.
 */
export function machineId(directory: string, sources: IdentitySources = SYSTEM): string {
  const file = join(directory, "machine-id");
  try {
    const kept = readFileSync(file, "utf8").trim();
    if (kept !== "") {
      return kept;
    }
  } catch {
    // The first start on this machine.
  }
  const name = sources.hostname().trim();
  const id = NOBODY.has(name.toLowerCase()) ? (sources.macAddresses()[0] ?? sources.uuid()) : name;
  mkdirSync(directory, { recursive: true });
  writeFileSync(file, `${id}\n`);
  return id;
}

/**
 * Says that this machine lives, registering it where nobody has. A machine that is registered already is left as it
 * is: its docker slots are the operator's.
 */
export async function announce(api: Api, id: string, log: Log): Promise<void> {
  try {
    await api.machineHeartbeat(id);
  } catch (error) {
    const failure = ApiError.from(error);
    if (failure.status !== 404) {
      log.debug(`Machine heartbeat: ${failure.message}`);
      return;
    }
    try {
      await api.registerMachine(id, hostname() || id, { platform: platform(), release: release() });
      log.info(`Registered this machine as ${id}.`);
    } catch (refusal) {
      log.warn(`Could not register this machine as ${id}: ${ApiError.from(refusal).message}`);
    }
  }
}
