import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";

interface AskProps {
  title: string;
  children: ComponentChildren;
  confirm: string;
  danger?: boolean;
  /** Does what was confirmed; its message is shown in the dialog where it throws. */
  act(fields: FormData): Promise<void>;
  close(): void;
}

/** A question that has to be answered before anything happens. The browser's own dialog: it keeps the focus,
 * closes on Escape and gives the focus back. */
export function Ask({ title, children, confirm, danger, act, close }: AskProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState<string | null>(null);
  const id = useId();
  useEffect(() => {
    const shown = dialog.current;
    shown?.showModal();
    return () => shown?.close();
  }, []);
  const submit = async (event: Event) => {
    event.preventDefault();
    if (busy) return;
    setBusy(true);
    setProblem(null);
    try {
      await act(new FormData(event.currentTarget as HTMLFormElement));
      close();
    } catch (error) {
      setProblem(error instanceof Error ? error.message : String(error));
      setBusy(false);
    }
  };
  return (
    <dialog ref={dialog} class="ask-dialog" aria-labelledby={`${id}-title`} onClose={close}>
      <form onSubmit={(event) => void submit(event)}>
        <h2 id={`${id}-title`}>{title}</h2>
        {children}
        <p class="said" role="alert">
          {problem}
        </p>
        <div class="dialog-buttons">
          <button type="button" onClick={() => dialog.current?.close()}>
            Cancel
          </button>
          <button type="submit" class={danger ? "danger" : "primary"} aria-disabled={busy}>
            {confirm}
          </button>
        </div>
      </form>
    </dialog>
  );
}
