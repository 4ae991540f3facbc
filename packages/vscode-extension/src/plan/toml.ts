/** TOML with the place of every value, so that a message about a value can stand where it is written. */
import { type AST, ParseError, getStaticTOMLValue, parseTOML } from "toml-eslint-parser";

/** Zero-based, the end exclusive, as editors count. */
export interface Span {
  readonly start: { readonly line: number; readonly column: number };
  readonly end: { readonly line: number; readonly column: number };
}

export type Path = readonly (string | number)[];

export class TomlDocument {
  private readonly spans = new Map<string, Span>();
  readonly value: unknown;

  /** Throws TomlError. */
  constructor(text: string) {
    const ast = parse(text);
    this.value = getStaticTOMLValue(ast);
    for (const node of ast.body[0].body) {
      if (node.type === "TOMLTable") {
        this.remember(node.resolvedKey, node.key);
        node.body.forEach((pair) => {
          this.visit(pair, node.resolvedKey);
        });
      } else {
        this.visit(node, []);
      }
    }
  }

  /** Where a value stands: its key; for what isn't written, the nearest thing around it that is. */
  locate(path: Path): Span {
    for (let length = path.length; length > 0; length--) {
      const span = this.spans.get(JSON.stringify(path.slice(0, length)));
      if (span !== undefined) {
        return span;
      }
    }
    return { start: { line: 0, column: 0 }, end: { line: 0, column: 0 } };
  }

  private visit(pair: AST.TOMLKeyValue, base: Path): void {
    const path = [...base, ...pair.key.keys.map((key) => (key.type === "TOMLBare" ? key.name : key.value))];
    this.remember(path, pair.key);
    this.descend(pair.value, path);
  }

  private descend(value: AST.TOMLContentNode, path: Path): void {
    if (value.type === "TOMLArray") {
      value.elements.forEach((element, index) => {
        this.remember([...path, index], element);
        this.descend(element, [...path, index]);
      });
    } else if (value.type === "TOMLInlineTable") {
      value.body.forEach((pair) => {
        this.visit(pair, path);
      });
    }
  }

  private remember(path: Path, node: { loc: AST.SourceLocation }): void {
    this.spans.set(JSON.stringify(path), {
      start: { line: node.loc.start.line - 1, column: node.loc.start.column },
      end: { line: node.loc.end.line - 1, column: node.loc.end.column },
    });
  }
}

export class TomlError extends Error {
  override readonly name = "TomlError";

  constructor(
    message: string,
    readonly line: number,
    readonly column: number,
  ) {
    super(message);
  }
}

function parse(text: string): AST.TOMLProgram {
  try {
    // The version that the command line reads: what is new in 1.1 is a mistake there.
    return parseTOML(text, { tomlVersion: "1.0" });
  } catch (error) {
    if (error instanceof ParseError) {
      const before = text.slice(0, error.index);
      if (/same line|Unspecified/.test(error.message) && /\n\s*$/.test(before)) {
        // What is missing is missing at the end of the line before the one where the parser notices.
        const lines = before.trimEnd().split("\n");
        throw new TomlError(error.message, lines.length - 1, lines.at(-1)?.length ?? 0);
      }
      throw new TomlError(error.message, error.lineNumber - 1, error.column);
    }
    throw error;
  }
}
