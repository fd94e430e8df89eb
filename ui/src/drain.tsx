// The drain of a pool, which then grants no key while its leases run on: the banner, the question, and
// the card in the view of the policy.
import { useState } from "preact/hooks";
import { call, type Pool, poolPath } from "./api";
import { Confirm } from "./dialog";
import { count, leasesRunOn } from "./format";
import { useSession } from "./session";

interface Props {
  pool: Pool;
  changed: () => void;
}

export function DrainBanner({ pool, changed }: Props) {
  const session = useSession();
  const [asking, setAsking] = useState(false);
  return (
    <section class="findings" aria-label="Drain">
      <p class="warning banner">
        <span class="level">Draining</span>
        <span>The pool grants no key; {leasesRunOn(pool.leased)}.</span>
        {session.allows("admin") && <button type="button" class="small" onClick={() => setAsking(true)}>Undo the drain</button>}
      </p>
      {asking && <DrainQuestion pool={pool} changed={changed} close={() => setAsking(false)} />}
    </section>
  );
}

/** The drain of a pool as a card, for tokens that may change the pool. */
export function DrainCard({ pool, changed }: Props) {
  const [asking, setAsking] = useState(false);
  return (
    <div class="card">
      <h2>{pool.draining ? "Undo the drain" : "Drain the pool"}</h2>
      <p>{pool.draining ? "The pool grants keys again." : "The pool grants no key, and its leases run on. This can be undone."}</p>
      <div class="buttons">
        <button type="button" class={pool.draining ? "" : "danger"} onClick={() => setAsking(true)}>{pool.draining ? "Undo the drain" : "Drain pool"}</button>
      </div>
      {asking && <DrainQuestion pool={pool} changed={changed} close={() => setAsking(false)} />}
    </div>
  );
}

function refusal(waiting: number): string {
  if (waiting === 0) return "The server refuses every acquire.";
  return `The server refuses every acquire, also the ${waiting === 1 ? "1 that waits" : `${count(waiting)} that wait`}.`;
}

function DrainQuestion({ pool, changed, close }: Props & { close: () => void }) {
  const { withToken } = useSession();
  // The pool can change while the question is open: the question stays what it was.
  const [draining] = useState(!pool.draining);
  const path = poolPath(pool.pool);
  const body = { draining };
  return (
    <Confirm
      title={draining ? `Drain the pool ${pool.pool}?` : `Undo the drain of ${pool.pool}?`}
      confirm={draining ? "Drain pool" : "Undo the drain"}
      danger={draining}
      action={{ method: "PUT", path, body, keypeg: `keypeg pool drain ${pool.pool}${draining ? "" : " --undo"}` }}
      withToken={withToken}
      close={close}
      run={async () => {
        await call("PUT", path, { body, headers: { "if-match": "*" } });
        changed();
      }}
    >
      <p>
        {draining
          ? `${refusal(pool.waiting)}${pool.leased === 0 ? "" : ` Now ${leasesRunOn(pool.leased)}, and can be renewed.`}`
          : "The pool grants keys again."}
      </p>
    </Confirm>
  );
}
