import type { Session } from "../api/client.js";

/** Why something cannot be done, in words for the person who asked for it. */
export class Refusal extends Error {
  override readonly name: string = "Refusal";

  constructor(
    message: string,
    /** The session that is in the way. */
    readonly existing?: Session,
    /** The refusal is a living process's claim on the work, which a person may overrule. */
    readonly canOverrule = false,
  ) {
    super(message);
  }
}

/** Somebody has ended it: whether it goes on is for a person to say. */
export class ForAPerson extends Refusal {
  override readonly name = "ForAPerson";
}
