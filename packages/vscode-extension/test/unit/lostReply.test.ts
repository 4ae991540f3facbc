/** A claim where the answer to its link is lost, as on a network file system: the real thing, but for that answer. */
import type * as Fs from "node:fs";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test, vi } from "vitest";
import { RunStore } from "../../src/tracking/store.js";

vi.mock("node:fs", async (original) => {
  const fs = await original<typeof Fs>();
  return {
    ...fs,
    linkSync: (from: string, to: string): never => {
      fs.linkSync(from, to);
      throw Object.assign(new Error("file already exists"), { code: "EEXIST" });
    },
  };
});

test("a claim whose link was made, and answered as if it had been there, is held", () => {
  const directory = mkdtempSync(join(tmpdir(), "claude-projects-lost-reply-"));
  try {
    const claim = new RunStore(directory).claim("r");
    expect(claim?.held).toBe(true);
    expect(new RunStore(directory).claim("r")).toBeUndefined();
  } finally {
    rmSync(directory, { recursive: true });
  }
});
