/** The part of VS Code's `LogOutputChannel` that the modules below the editor need. */
export interface Log {
  debug(message: string): void;
  info(message: string): void;
  warn(message: string): void;
  error(message: string): void;
}

/** A log that outlasts its channel: VS Code closes channels before the extension has put its work down. */
export function lasting(channel: Log): Log {
  const attempt =
    (level: keyof Log) =>
    (message: string): void => {
      try {
        channel[level](message);
      } catch {
        // Nobody can read it any more.
      }
    };
  return {
    debug: attempt("debug"),
    info: attempt("info"),
    warn: attempt("warn"),
    error: attempt("error"),
  };
}
