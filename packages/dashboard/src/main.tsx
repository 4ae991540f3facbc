import { render } from "preact";
import { startWithKey } from "./key";
import { Shell } from "./shell";

startWithKey();
const place = document.getElementById("app");
if (place) {
  place.replaceChildren();
  render(<Shell />, place);
}
