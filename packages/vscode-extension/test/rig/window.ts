/** One window of the editor, as a person uses it: the palette, notifications, quick picks, views. */
import type { Locator, Page } from "playwright-core";
import type { Editor } from "./editor.js";
import { until } from "./until.js";

/** Before the palette is tried again. */
const PALETTE_PATIENCE_MS = 5_000;

/** Before a notification is looked for where the editor keeps those that it no longer shows. */
const TOAST_PATIENCE_MS = 25_000;

export class Window {
  /** The process id of its extension host. */
  host = 0;

  constructor(
    readonly page: Page,
    private readonly editor: Editor,
    readonly folder: string,
  ) {}

  async ready(): Promise<void> {
    await this.page.locator(".monaco-workbench .statusbar").waitFor({ timeout: 60_000 });
  }

  /** Stores the API key as a person does. */
  async setKey(key: string): Promise<void> {
    await this.command("Claude Projects: Set API Key");
    await this.quickInput("API Key of the State Tracking API");
    await this.answer(key);
  }

  /** Starts the folder's only plan. */
  async start(plan: string): Promise<void> {
    await this.command("Claude Projects: Start Orchestration");
    await this.quickInput("Start an Orchestration");
    await this.pick(plan);
  }

  /** Runs a command by its title in the palette. */
  async command(title: string): Promise<void> {
    const input = this.page.locator(".quick-input-widget input.input");
    const marked = this.page.locator(".quick-input-list .monaco-list-row.focused", { hasText: title });
    // Whatever is just being closed may close the palette with it: then it is opened again.
    await until(`the palette has marked “${title}”`, async () => {
      if (!(await input.isVisible())) {
        await this.page.keyboard.press("F1");
        await input.waitFor({ timeout: PALETTE_PATIENCE_MS });
      }
      await input.fill(`>${title}`, { timeout: PALETTE_PATIENCE_MS });
      // Not before the list has been filtered: Enter runs what is marked at that moment.
      await marked.waitFor({ timeout: PALETTE_PATIENCE_MS });
      return true;
    });
    await this.page.keyboard.press("Enter");
  }

  /** Picks an entry of the quick pick that is open. */
  async pick(text: string): Promise<void> {
    await this.page.locator(".quick-input-list .monaco-list-row", { hasText: text }).first().click();
  }

  /** Types into the input box that is open, and accepts. */
  async answer(text: string): Promise<void> {
    const input = this.page.locator(".quick-input-widget input.input");
    await input.waitFor();
    await input.fill(text);
    await this.page.keyboard.press("Enter");
    // Accepted only once it has been validated, in the extension host.
    await input.waitFor({ state: "hidden" });
  }

  /** The quick input's title, once one is open. */
  async quickInput(title: string): Promise<void> {
    await this.page.locator(".quick-input-titlebar", { hasText: title }).waitFor();
  }

  notification(text: string): Locator {
    return this.page.locator(".notifications-toasts .notification-list-item", { hasText: text }).first();
  }

  async press(notification: string, button: string): Promise<void> {
    const pressed = this.page
      .locator(".notifications-toasts, .notifications-center")
      .locator(".notification-list-item", { hasText: notification })
      .locator(".monaco-button", { hasText: button })
      .first();
    // After some seconds the editor puts a toast away, into the notification centre.
    await pressed.click({ timeout: TOAST_PATIENCE_MS }).catch(async () => {
      await this.command("Notifications: Show Notifications");
      await pressed.click();
    });
  }

  /** The text of the extension's status bar item; empty where it isn't shown. */
  async status(): Promise<string> {
    const item = this.page.locator('[id="claude-projects.claude-projects.claudeProjects.status"]');
    return (await item.count()) === 0 ? "" : ((await item.first().textContent()) ?? "");
  }

  /** Opens the extension's view in the side bar. */
  async showView(): Promise<void> {
    await this.command("Claude Projects: Focus on Sessions View");
    await this.page.locator(".sidebar .composite.title", { hasText: "Claude Projects" }).waitFor();
  }

  treeRow(text: string): Locator {
    return this.page.locator(".pane-body .monaco-list-row", { hasText: text }).first();
  }

  /** Ends the window and, as a closed browser tab would not, its host. */
  async close(): Promise<void> {
    await this.page.goto("about:blank");
    await until("the window's host has ended", () => !this.editor.hosts().includes(this.host));
    this.editor.retire(this.page);
  }

  /** Ends the window as a lost connection or a crash of the browser does: its host does not hear of it, and lives on. */
  async abandon(): Promise<void> {
    const crashed = this.page.waitForEvent("crash");
    await this.page.goto("chrome://crash").catch(() => undefined);
    await crashed;
    await this.page.close();
  }

  async screenshot(path: string): Promise<void> {
    await this.page.screenshot({ path });
  }
}
