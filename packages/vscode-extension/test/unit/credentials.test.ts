/** Which key is used; the editor's secret storage is a map here. */
import { afterEach, expect, test, vi } from "vitest";
import type { SecretStorage } from "vscode";
import { Credentials } from "../../src/credentials.js";

// There is no such module outside of an editor, and what is tested here needs nothing of it.
vi.mock("vscode", () => ({}));

afterEach(() => {
  vi.unstubAllEnvs();
});

function stored(key: string | undefined): Credentials {
  return new Credentials({ get: () => Promise.resolve(key) } as unknown as SecretStorage);
}

test.each([
  ["the environment's wins over a stored one", "of the environment", "stored", "of the environment"],
  [
    "the environment's is enough, without the blanks around it",
    " of the environment\n",
    undefined,
    "of the environment",
  ],
  ["a blank one in the environment is none", " ", "stored", "stored"],
  ["the stored one is used where there is no other", undefined, "stored", "stored"],
  ["there is none where an empty one is stored", undefined, "", undefined],
])("%s", async (_, environment, secret, expected) => {
  vi.stubEnv("CLAUDE_PROJECTS_API_KEY", environment);
  expect(await stored(secret).key()).toBe(expected);
});
