/** Plans whose tasks wait for the test: each notes that it began, waits for its gate, and notes that it is done. */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

export function gatedPlan(projectId: string, name: string, tasks: readonly string[]): string {
  const tables = tasks.map(
    (task) => `
[[tasks]]
name = "${task}"
command = """echo "${task} begins"; echo $$ ${task} >> begun; until [ -e open-${task} ]; do sleep 0.1; done; echo ${task} >> done"""
`,
  );
  return `project_id = "${projectId}"\nname = "${name}"\n${tables.join("")}`;
}

export class Gates {
  constructor(
    private readonly folder: string,
    /** What the names of its files begin with. */
    private readonly prefix = "",
  ) {}

  open(...tasks: string[]): void {
    tasks.forEach((task) => {
      writeFileSync(join(this.folder, `${this.prefix}open-${task}`), "");
    });
  }

  /** The tasks that were begun, in order, each with the process that did so. */
  get begun(): { readonly pid: number; readonly task: string }[] {
    return this.lines("begun").map((line) => {
      const [pid = "", task = ""] = line.split(" ");
      return { pid: Number(pid), task };
    });
  }

  get done(): string[] {
    return this.lines("done");
  }

  private lines(name: string): string[] {
    const path = join(this.folder, this.prefix + name);
    return existsSync(path)
      ? readFileSync(path, "utf8")
          .split("\n")
          .filter((line) => line !== "")
      : [];
  }
}
