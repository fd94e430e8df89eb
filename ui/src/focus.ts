// Where the focus goes when the element that has it leaves a view, such as a banner or the row of a key:
// to the nearest element around it that can have the focus and stays, or to the heading. A browser
// moves it to the top of the page. A modal question counts as a part of the element that opened it. A
// heading that takes the focus has tabIndex -1.
import { type RefObject } from "preact";
import { useEffect, useRef } from "preact/hooks";

/** Keeps the focus in a view while the view is shown. Returns the reference for its element. */
export function useKeptFocus<Element extends HTMLElement>(): RefObject<Element | null> {
  const view = useRef<Element>(null);
  useEffect(() => {
    const element = view.current;
    if (element === null) return;
    let focused: EventTarget[] = [];
    let asking: EventTarget[] = [];
    const note = (event: Event) => {
      const path = event.composedPath();
      const isInQuestion = path.some((it) => it instanceof HTMLDialogElement);
      if (!isInQuestion) asking = path;
      focused = isInQuestion ? [...path.slice(0, 1), ...asking] : path;
    };
    // A press on a place without focus takes the focus away on purpose.
    const forget = () => { focused = []; };
    const observer = new MutationObserver(() => {
      const [last, ...around] = focused;
      if (!(last instanceof Node) || last.isConnected || document.activeElement !== document.body) return;
      forget();
      const nearest = around.find((it) => it instanceof HTMLElement && it.tabIndex >= 0 && element.contains(it));
      const next = nearest ?? element.querySelector("h1");
      if (next instanceof HTMLElement) next.focus();
    });
    element.addEventListener("focusin", note);
    document.addEventListener("pointerdown", forget, true);
    observer.observe(element, { childList: true, subtree: true });
    return () => {
      observer.disconnect();
      document.removeEventListener("pointerdown", forget, true);
      element.removeEventListener("focusin", note);
    };
  }, []);
  return view;
}
