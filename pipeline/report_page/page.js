"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const REGIONS = data.regions; // names in the order of every array with a region axis
  const LABEL = { collar: "Collar", left_sleeve: "Left sleeve", right_sleeve: "Right sleeve", chest: "Chest", waist: "Waist" };
  const LETTERS = { collar: "Co", left_sleeve: "LS", right_sleeve: "RS", chest: "Ch", waist: "Wa" };
  const VERDICTS = ["identical", "plagiarised", "similar", "undecidable"];
  const VERDICT_LABEL = { identical: "Identical", plagiarised: "Plagiarised", similar: "Similar", undecidable: "Undecidable" };
  const VERDICT_SIGN = { identical: "=", plagiarised: "≈", similar: "∼", undecidable: "?" };
  const STATE_LABEL = { kept: "kept", changed: "changed", not_comparable: "not comparable" };
  const SVG = "http://www.w3.org/2000/svg";
  const ABSENT = 1; // psnet.regions.Presence
  const AS_SCANNED = "scanned", CUSTOM = "custom";

  // ---- small DOM helpers: text always becomes a text node, so nothing a seller wrote is ever parsed as HTML

  const $ = (id) => document.getElementById(id);
  function append(node, children) {
    for (const child of children.flat()) if (child !== null && child !== undefined && child !== "") node.append(child);
    return node;
  }
  function el(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
    }
    return append(node, children);
  }
  function svg(tag, attributes, ...children) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
    return append(node, children);
  }
  const number = (n) => Number(n).toLocaleString("en-GB");
  const fixed = (n, digits = 3) => (n === null || n === undefined ? "–" : Number(n).toFixed(digits).replace("-", "−"));
  const count = (n, one, many) => `${number(n)} ${n === 1 ? one : many || one + "s"}`;
  function toast(text) {
    const node = $("toast");
    node.textContent = text;
    node.classList.add("on");
    clearTimeout(toast.timer);
    toast.timer = setTimeout(() => node.classList.remove("on"), 3200);
  }

  // ---- the pairs

  const pairs = data.suspects.map((row) => {
    const original = data.items[row.o], suspect = data.items[row.s];
    const garments = [row.og, row.sg].map((g) => (g === null ? null : data.garments[g]));
    const text = [original, suspect].map((i) => [i.id, i.title, i.brand, i.seller, i.category, i.listed].join("\n")).join("\n");
    const kinds = new Set();
    for (const g of garments) if (g) { kinds.add("group:" + g.group); kinds.add("garment:" + g.category); }
    for (const i of [original, suspect]) if (i.category) kinds.add("catalogue:" + i.category);
    return { ...row, original, suspect, garments, kinds, text: (text + "\n" + row.explanation + "\n" + row.id).toLowerCase(),
      key: JSON.stringify([original.id, suspect.id].sort()) };
  });
  const pairById = new Map(pairs.map((pair) => [pair.id, pair]));

  // PS-Net's "manual" interface: S = sum w_r cos_r / sum w_r over the comparable regions (Lang et al. 2020, Eq. 1).
  function weightedScore(pair, weights) {
    let sum = 0, total = 0;
    for (let r = 0; r < REGIONS.length; r++) {
      if (pair.cos[r] === null) continue;
      sum += weights[r] * pair.cos[r];
      total += weights[r];
    }
    return total > 0 ? sum / total : null; // nothing that has a weight can be compared
  }

  // ---- the view: everything that a link to this page can carry

  const BLANK = { preset: AS_SCANNED, weights: null, verdicts: null, kind: "", seller: "", query: "", changed: "", decision: "", min: 0,
    sort: "best", page: 1, per: 25, boxes: true };
  let view = { ...BLANK };
  let shown = []; // pairs of the current view, best first
  let pending = 0;

  function encodeView() {
    const hash = new URLSearchParams();
    if (view.weights) hash.set("weights", view.weights.join(","));
    if (view.preset !== AS_SCANNED && view.preset !== CUSTOM) hash.set("preset", view.preset);
    if (view.verdicts) hash.set("verdict", VERDICTS.filter((v) => view.verdicts.has(v)).join(","));
    for (const name of ["kind", "seller", "query", "changed", "decision"]) if (view[name]) hash.set(name, view[name]);
    if (view.min > 0) hash.set("min", view.min.toFixed(2));
    if (view.sort !== "best") hash.set("sort", view.sort);
    if (view.page > 1) hash.set("page", view.page);
    if (view.per !== 25) hash.set("per", view.per);
    if (!view.boxes) hash.set("boxes", "0");
    return hash.toString();
  }
  function decodeView(text) {
    const hash = new URLSearchParams(text);
    const next = { ...BLANK };
    const preset = data.presets.find((p) => p.id === hash.get("preset"));
    if (preset) { next.preset = preset.id; next.weights = preset.weights && [...preset.weights]; }
    const weights = (hash.get("weights") || "").split(",").map(Number);
    if (weights.length === REGIONS.length && weights.every((w) => Number.isFinite(w) && w >= 0 && w <= 1)) {
      next.weights = weights;
      next.preset = presetOf(weights);
    }
    if (hash.has("verdict")) next.verdicts = new Set(hash.get("verdict").split(",").filter((v) => VERDICTS.includes(v)));
    for (const name of ["kind", "seller", "query", "changed", "decision"]) next[name] = hash.get(name) || "";
    const min = Number(hash.get("min"));
    if (min > 0 && min <= 1) next.min = min;
    if (hash.get("sort") in SORTS) next.sort = hash.get("sort");
    next.page = Math.max(1, parseInt(hash.get("page"), 10) || 1);
    if (["50", "100"].includes(hash.get("per"))) next.per = Number(hash.get("per"));
    next.boxes = hash.get("boxes") !== "0";
    return next;
  }
  function presetOf(weights) {
    const same = data.presets.find((p) => p.weights && p.weights.every((w, r) => Math.abs(w - weights[r]) < 0.005));
    return same ? same.id : CUSTOM;
  }
  let hashTimer = 0;
  function writeHash() {
    clearTimeout(hashTimer); // browsers limit how often the address may change; a moving slider would exceed it
    hashTimer = setTimeout(() => {
      const hash = encodeView();
      history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search);
    }, 250);
  }
  const pageLink = (hash) => location.href.split("#")[0] + (hash ? "#" + hash : "");

  // One region alone says little, however much alike it is: under one's own weights, too, undecidable pairs stand last.
  const isOpen = (pair) => Number(pair.relation === "undecidable" || pair.now === null);
  const byScore = (a, b) => (view.weights ? isOpen(a) - isOpen(b) : 0) || (b.now ?? 0) - (a.now ?? 0) || a.rank - b.rank;
  const SORTS = {
    best: (a, b) => (view.weights ? byScore(a, b) : a.rank - b.rank),
    score: byScore,
    normalised: (a, b) => (b.norm ?? -Infinity) - (a.norm ?? -Infinity) || a.rank - b.rank,
    rank: (a, b) => a.rank - b.rank,
    newest: (a, b) => b.suspect.listed.localeCompare(a.suspect.listed) || a.rank - b.rank,
    fewest: (a, b) => a.modified.length - b.modified.length || byScore(a, b),
    seller: (a, b) => a.suspect.seller.localeCompare(b.suspect.seller) || byScore(a, b),
  };

  function rerank() {
    for (const pair of pairs) pair.now = view.weights ? weightedScore(pair, view.weights) : pair.score;
    const words = view.query.toLowerCase().split(/\s+/).filter(Boolean);
    const seller = view.seller.trim().toLowerCase();
    const exact = data.sellers.some((s) => s.toLowerCase() === seller);
    const hasSeller = (item) => (exact ? item.seller.toLowerCase() === seller : item.seller.toLowerCase().includes(seller));
    shown = pairs.filter((pair) =>
      (!view.verdicts || view.verdicts.has(pair.relation)) &&
      (!view.kind || pair.kinds.has(view.kind)) &&
      (!seller || hasSeller(pair.original) || hasSeller(pair.suspect)) &&
      (!view.changed || pair.modified.includes(view.changed)) &&
      (!view.decision || (decisionOf(pair)?.decision || "open") === view.decision) &&
      (view.min <= 0 || pair.now === null || pair.now >= view.min) &&
      words.every((word) => pair.text.includes(word)));
    shown.sort(SORTS[view.sort]);
  }

  // ---- reviewer decisions, kept in this browser under the catalogue's name so that they outlive a rescan

  const STORE = "psnet.decisions." + data.scope;
  let decisions = {};
  let storeWorks = true;
  const reasons = new Map(); // of decisions that were taken back
  function readDecisions() {
    try {
      decisions = JSON.parse(localStorage.getItem(STORE) || "{}");
    } catch {
      storeWorks = false;
    }
  }
  readDecisions();
  const sellersOf = (pair) => [[pair.original.id, pair.original.seller], [pair.suspect.id, pair.suspect.seller]].sort().map((side) => side[1]).join("\n");
  // A decision on items of other sellers, under the same identifiers, is one on other items.
  const decisionOf = (pair) => {
    const d = Object.hasOwn(decisions, pair.key) ? decisions[pair.key] : null;
    return d && (d.sellers === undefined || d.sellers === sellersOf(pair)) ? d : null;
  };
  // What another tab has decided meanwhile stays: only this pair's decision is written, null takes it back.
  function writeDecision(pair, decision) {
    if (storeWorks) readDecisions();
    if (decision) decisions[pair.key] = decision;
    else delete decisions[pair.key];
    try {
      localStorage.setItem(STORE, JSON.stringify(decisions));
    } catch {
      storeWorks = false;
    }
    refreshDecisions();
  }
  function refreshDecisions() {
    showDecisionCount();
    for (const entry of cards.values()) entry.refresh();
  }
  function decide(pair, decision) {
    const before = decisionOf(pair);
    if (before) reasons.set(pair.key, before.reason);
    writeDecision(pair, before?.decision === decision ? null
      : { decision, reason: reasons.get(pair.key) || "", a: pair.original.id, b: pair.suspect.id, sellers: sellersOf(pair) });
  }
  window.addEventListener("storage", (event) => {
    if (event.key !== STORE && event.key !== null) return;
    readDecisions();
    refreshDecisions();
  });
  function showDecisionCount() {
    const all = Object.values(decisions);
    const dismissed = all.filter((d) => d.decision === "dismissed").length;
    let text = `${number(all.length - dismissed)} confirmed, ${number(dismissed)} dismissed.`;
    if (data.dismissed.length) text += ` The file also keeps the ${count(data.dismissed.length, "pair")} dismissed before this scan.`;
    if (!storeWorks) text += " This browser keeps no data for local pages: download the file before you close this one.";
    $("decisioncount").textContent = text;
    $("savedismissed").disabled = !dismissed && !data.dismissed.length;
  }

  // ---- CSV

  const quote = (text) => (/[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text);
  // A spreadsheet runs a cell that starts like a formula; an apostrophe in front makes it text.
  const guard = (text) => (/^[=+\-@\t\r]/.test(text) ? "'" + text : text);
  const csvLine = (cells) => cells.map((c) => quote(String(c ?? ""))).join(",");
  // The mark at the start is what makes Excel read UTF-8.
  function download(name, lines) {
    const url = URL.createObjectURL(new Blob(["\ufeff" + lines.join("\r\n") + "\r\n"], { type: "text/csv;charset=utf-8" }));
    const link = el("a", { href: url, download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }
  function dismissedLines() {
    const rows = new Map(data.dismissed.map(([a, b, reason]) => [JSON.stringify([a, b].sort()), [a, b, reason]]));
    for (const [key, d] of Object.entries(decisions)) {
      if (d.decision === "dismissed") rows.set(key, [d.a, d.b, d.reason]);
    }
    // Identifiers stay exactly as they are: a machine reads this file.
    return [csvLine(["item_id_a", "item_id_b", "reason"]), ...[...rows.values()].map(csvLine)];
  }
  function viewLines() {
    const head = ["position", "score", "scan_rank", "scan_score", "normalised_score", "relation", "original_item_id", "suspect_item_id",
      "modified_regions", "direction", "days_later", "mirrored", ...REGIONS.map((r) => "cos_" + r), "original_seller_id", "suspect_seller_id",
      "original_brand", "suspect_brand", "original_title", "suspect_title", "original_listed_at", "suspect_listed_at", "original_url",
      "suspect_url", "registered_points", "explanation", "decision", "reason"];
    return [csvLine(head), ...shown.map((p, i) => {
      const d = decisionOf(p);
      return csvLine([i + 1, p.now === null ? "" : p.now.toFixed(6), p.rank, p.score, p.norm, p.relation, guard(p.original.id), guard(p.suspect.id),
        p.modified.join("|"), p.direction, p.days, p.mirrored, ...p.cos, guard(p.original.seller), guard(p.suspect.seller),
        guard(p.original.brand), guard(p.suspect.brand), guard(p.original.title), guard(p.suspect.title), p.original.listed,
        p.suspect.listed, guard(p.original.url), guard(p.suspect.url), p.points, guard(p.explanation), d?.decision, guard(d?.reason || "")]);
    })];
  }

  // ---- photographs with their region boxes

  // In a mirrored pair the original's left sleeve was compared with the suspect's right one.
  const boxIndex = (pair, side, r) => (side === 1 && pair.mirrored ? data.mirror[r] : r);

  function overlay(pair, side, picture) {
    const garment = pair.garments[side];
    const root = svg("svg", { class: "overlay", viewBox: `0 0 ${picture.w} ${picture.h}`, "aria-hidden": "true" });
    const size = Math.max(picture.w, picture.h) / 26;
    const boxes = [], tags = [];
    for (let r = 0; r < REGIONS.length; r++) {
      const box = garment.boxes[boxIndex(pair, side, r)];
      if (!box) continue;
      const [x0, y0, x1, y1] = box;
      const at = { x: x0, y: y0, width: Math.max(x1 - x0, 1), height: Math.max(y1 - y0, 1) };
      const tagX = Math.min(Math.max(x0, 0), picture.w - size * 1.6), tagY = Math.min(Math.max(y0, 0), picture.h - size * 1.1);
      tags.push(svg("g", { class: "tag " + pair.states[r], "data-region": r },
        svg("rect", { x: tagX, y: tagY, width: size * 1.6, height: size * 1.1 }),
        svg("text", { x: tagX + size * 0.8, y: tagY + size * 0.57, "font-size": size * 0.85 }, LETTERS[REGIONS[r]])));
      boxes.push(svg("g", { "data-region": r }, svg("rect", { class: "halo", ...at }), svg("rect", { class: "box " + pair.states[r], ...at })));
    }
    root.append(...boxes.reverse(), ...tags); // the collar lies over the chest, letters over everything
    return root;
  }
  function photo(pair, side, attributes, tag = "button") {
    const item = side === 0 ? pair.original : pair.suspect;
    const garment = pair.garments[side];
    const picture = garment && data.pictures[garment.picture];
    const frame = el(tag, { class: "photo", ...attributes });
    if (!picture || !picture.src) return append(frame, [el("span", { class: "missing" }, "The photograph could not be read when this page was written, or has been replaced since the scan.")]);
    const alt = `${sideName(pair, side)} ${item.id}${item.title ? ", " + item.title : ""}. ${whatChanged(pair)}.`;
    return append(frame, [el("img", { src: picture.src, alt, loading: "lazy", decoding: "async", width: picture.w, height: picture.h }),
      garment.boxes ? overlay(pair, side, picture) : null]);
  }
  function highlight(root, r) {
    for (const over of root.querySelectorAll(".overlay")) {
      over.classList.toggle("focusing", r !== null);
      for (const group of over.children) group.classList.toggle("on", Number(group.dataset.region) === r);
    }
  }

  // ---- a card

  const badge = (relation) => el("span", { class: "badge " + relation }, el("span", { "aria-hidden": "true" }, VERDICT_SIGN[relation]), VERDICT_LABEL[relation]);
  function whatChanged(pair) {
    if (pair.relation === "undecidable") return "Too little in sight to compare";
    const joined = (names) => names.length > 1 ? names.slice(0, -1).join(", ") + " and " + names.at(-1) : names[0];
    const unseen = REGIONS.filter((_, r) => pair.states[r] === "not_comparable").map((r) => LABEL[r].toLowerCase());
    if (!pair.modified.length) return unseen.length ? `Nothing comparable changed; ${joined(unseen)} cannot be compared` : "Nothing changed";
    const text = joined(pair.modified.map((r) => LABEL[r].toLowerCase()));
    return text[0].toUpperCase() + text.slice(1) + " changed";
  }
  // Where nothing says who was first, neither side is called what it may not be.
  const sideName = (pair, side) => ["Original", "Suspect"][side] + (pair.direction === "unknown" ? "?" : "");
  // In which attributes the two garments agree, where the scan asked ASEN.
  function attributeText(pair) {
    const words = (names) => names.map((name) => name.replaceAll("_", " ")).join(", ") || "none";
    return `Attributes that agree: ${words(pair.agree)}. That differ: ${words(pair.differ)}.`;
  }

  function directionText(pair) {
    if (pair.direction === "rights_holder") return "The original belongs to the stated rights holder.";
    if (pair.direction === "original_first_listed") return "The original is the earlier listing.";
    return "Direction unknown: the listing dates are equal or missing. Neither column is a claim about who came first.";
  }
  function facts(item) {
    const rows = [["Seller", item.seller], ["Brand", item.brand], ["Category", item.category], ["Listed", item.listed], ["Item", item.id]];
    const list = el("dl", { class: "facts" });
    for (const [name, value] of rows) if (value) list.append(el("dt", null, name), el("dd", { class: name === "Item" ? "mono" : null }, value));
    if (item.url) list.append(el("dt", null, "Listing"), el("dd", null, el("a", { href: item.url, target: "_blank", rel: "noopener noreferrer" }, "Open")));
    return list;
  }
  function sidePanel(pair, side) {
    const item = side === 0 ? pair.original : pair.suspect;
    const unknown = pair.direction === "unknown";
    const listed = pair.days === null ? "" : pair.days === 0 ? "listed the same day"
      : `listed ${count(Math.abs(pair.days), "day")} ${pair.days > 0 ? "later" : "earlier"}`;
    const note = side === 1 ? listed
      : unknown ? "" : pair.direction === "rights_holder" ? "rights holder" : "earlier listing";
    return el("div", { class: "side" },
      el("div", { class: "sidehead" }, el("b", null, sideName(pair, side)), el("span", null, note)),
      photo(pair, side, { type: "button", "aria-label": `Compare ${pair.original.id} and ${pair.suspect.id} at large size`, onclick: () => openCompare(pair) }),
      item.title ? el("p", { class: "itemtitle", title: item.title }, item.title) : null,
      facts(item));
  }
  // Log-odds of a change -> how likely the region is unchanged.
  const unchanged = (odds) => (odds === null ? null : 1 / (1 + Math.exp(odds)));
  // What a region's state stands on, and from where on it counts as kept.
  const evidence = (pair, r) => pair.points ? [unchanged(pair.changed[r]), data.changed_thresholds ? unchanged(data.changed_thresholds[r]) : null]
    : [pair.cos[r], data.thresholds ? data.thresholds[r] : null];
  const evidenceText = (pair, r) => {
    const [value] = evidence(pair, r);
    return value === null ? "" : (pair.points ? `, unchanged with ${fixed(value, 2)}` : `, similarity ${fixed(value, 2)}`);
  };
  function barNote(pair) {
    if (pair.points) return `One photograph lies upon the other (${count(pair.points, "point")} agree): the bars say how likely each region is unchanged. The tick marks where it counts as kept.`;
    return data.thresholds ? "The tick marks where a region counts as kept." : "";
  }
  function bars(pair, root) {
    const list = el("div", { class: "bars", role: "list", "aria-label": pair.points ? "How likely each region is unchanged" : "Similarity per region" });
    REGIONS.forEach((region, r) => {
      const state = pair.states[r];
      const [cos, threshold] = evidence(pair, r);
      const share = cos === null ? 0 : Math.min(Math.max(cos, 0), 1);
      const rare = pair.distinct && pair.distinct[r] !== null ? `, distinctiveness ${fixed(pair.distinct[r], 2)}` : "";
      const track = el("span", { class: "track", "aria-hidden": "true" });
      const fill = el("span", { class: "fill" });
      fill.style.width = (share * 100).toFixed(1) + "%";
      if (cos !== null) track.append(fill);
      if (cos !== null && threshold !== null) {
        const tick = el("span", { class: "tick", title: `Kept from ${fixed(threshold, 2)}` });
        tick.style.left = (Math.min(Math.max(threshold, 0), 1) * 100).toFixed(1) + "%";
        track.append(tick);
      }
      list.append(el("div", { class: "bar " + state, role: "listitem", onmouseenter: () => highlight(root(), r), onmouseleave: () => highlight(root(), null) },
        el("span", { class: "letter " + state, "aria-hidden": "true" }, LETTERS[region]),
        el("span", { class: "name" }, LABEL[region], el("small", null, STATE_LABEL[state] + rare)),
        track, el("span", { class: "value" }, cos === null ? "–" : fixed(cos, 2))));
    });
    return list;
  }

  const cards = new Map();
  function card(pair) {
    if (cards.has(pair.id)) return cards.get(pair.id);
    const rank = el("span", { class: "rank" });
    const scorebox = el("span", { class: "scorebox" });
    const numbers = el("p", { class: "numbers" });
    const decided = el("span", { class: "decided" });
    const confirm = el("button", { type: "button", onclick: () => decide(pair, "confirmed") }, "Confirm");
    const dismiss = el("button", { type: "button", onclick: () => decide(pair, "dismissed") }, "Dismiss");
    const reasonInput = el("input", { type: "text", list: "reasons", placeholder: "optional", autocomplete: "off", onchange: (event) => {
      const d = decisionOf(pair);
      if (d) writeDecision(pair, { ...d, reason: event.target.value.trim() });
    } });
    const reason = el("label", { class: "reason" }, el("span", null, "Reason"), reasonInput);
    const node = el("li", { class: "card", id: "pair-" + pair.id, tabindex: "-1", "data-id": pair.id, "aria-labelledby": "head-" + pair.id });
    node.append(
      el("div", { class: "cardhead", id: "head-" + pair.id }, rank, badge(pair.relation),
        el("span", { class: "what" }, whatChanged(pair)),
        pair.mirrored ? el("span", { class: "flag", title: "The suspect's photograph is a mirror image: left and right are swapped." }, "⇄ mirrored") : null,
        decided, scorebox),
      el("div", { class: "cardbody" }, sidePanel(pair, 0), sidePanel(pair, 1),
        el("div", { class: "evidence" },
          el("p", { class: "explanation" }, pair.explanation),
          bars(pair, () => node),
          barNote(pair) ? el("p", { class: "barnote" }, barNote(pair)) : null,
          pair.agree ? el("p", { class: "attributes" }, attributeText(pair)) : null,
          el("p", { class: "direction" }, directionText(pair)),
          numbers,
          el("div", { class: "actions" }, confirm, dismiss,
            el("button", { type: "button", class: "minor", onclick: () => openCompare(pair) }, "Compare"),
            el("button", { type: "button", onclick: () => copy(pageLink("pair-" + pair.id), "Link to this pair copied."), "aria-label": "Copy a link to this pair" }, "Link"),
            reason))));
    const entry = {
      node,
      place(position) {
        const moved = position === pair.rank ? null : el("small", null, `${number(pair.rank)} in the scan`);
        rank.replaceChildren(...["#" + number(position), moved].filter(Boolean));
        const plain = [["Score", pair.score], ["Normalised score", pair.norm]];
        const [leads, ...others] = view.weights ? [["With your weights", pair.now], ...plain]
          : data.ranked_by === "normalised_score" ? [plain[1], plain[0]] : plain;
        numbers.replaceChildren(...others.filter(([, value]) => value !== null)
          .map(([name, value]) => el("span", null, name + " ", el("b", null, fixed(value)))));
        scorebox.replaceChildren(leads[0], el("b", null, fixed(leads[1])));
      },
      refresh() {
        const d = decisionOf(pair);
        node.classList.toggle("confirmed", d?.decision === "confirmed");
        node.classList.toggle("dismissed", d?.decision === "dismissed");
        confirm.setAttribute("aria-pressed", d?.decision === "confirmed");
        dismiss.setAttribute("aria-pressed", d?.decision === "dismissed");
        decided.textContent = d ? (d.decision === "confirmed" ? "✓ confirmed" : "✕ dismissed") : "";
        reason.hidden = !d;
        if (document.activeElement !== reasonInput) reasonInput.value = d?.reason || "";
      },
    };
    entry.refresh();
    cards.set(pair.id, entry);
    return entry;
  }

  // ---- drawing the list

  function render() {
    pending = 0;
    rerank();
    const pages = Math.max(1, Math.ceil(shown.length / view.per));
    view.page = Math.min(view.page, pages);
    const start = (view.page - 1) * view.per;
    const page = shown.slice(start, start + view.per);
    const active = document.activeElement;
    $("list").replaceChildren(...page.map((pair, i) => {
      const entry = card(pair);
      entry.place(start + i + 1);
      return entry.node;
    }));
    if (active && active !== document.activeElement && $("list").contains(active)) active.focus({ preventScroll: true });
    $("list").classList.toggle("noboxes", !view.boxes);
    const range = shown.length ? `${number(start + 1)}–${number(start + page.length)} of ` : "";
    $("count").replaceChildren(range, el("b", null, number(shown.length)), shown.length === pairs.length ? ` suspected ${pairs.length === 1 ? "pair" : "pairs"}` : ` shown, ${number(pairs.length)} in all`);
    $("savecsv").disabled = !shown.length;
    showEmpty();
    showPager(pages);
    showControls();
    writeHash();
  }
  function schedule() {
    if (!pending) pending = requestAnimationFrame(render);
  }
  function change(changes) {
    view = { ...view, page: 1, ...changes };
    schedule();
  }
  function showEmpty() {
    const box = $("empty");
    box.hidden = shown.length > 0;
    for (const id of ["legend", "toolbar"]) $(id).hidden = !pairs.length;
    $("panel").hidden = !pairs.length;
    if (shown.length) return;
    if (pairs.length) {
      box.replaceChildren(el("h2", null, "No pair matches these filters"), el("p", null, `All ${number(pairs.length)} suspected pairs are filtered out.`),
        el("button", { type: "button", onclick: clearFilters }, "Clear the filters"));
    } else {
      $("layout").style.gridTemplateColumns = "minmax(0, 1fr)";
      box.replaceChildren(el("h2", null, "No suspected copies"), el("p", null, data.empty),
        el("p", null, "An empty list is no clearance: it says that nothing reached the thresholds of this scan."));
    }
  }
  function showPager(pages) {
    const nav = $("pager");
    nav.hidden = shown.length <= 25;
    const go = (page) => () => {
      view.page = page;
      render();
      $("list").focus({ preventScroll: true });
      $("toolbar").scrollIntoView({ block: "start" });
    };
    const per = el("select", { "aria-label": "Pairs per page", onchange: (event) => change({ per: Number(event.target.value) }) });
    for (const n of [25, 50, 100]) per.append(el("option", { value: n, selected: n === view.per }, `${n} per page`));
    nav.replaceChildren(
      el("button", { type: "button", disabled: view.page === 1, onclick: go(1) }, "First"),
      el("button", { type: "button", disabled: view.page === 1, onclick: go(view.page - 1) }, "Previous"),
      el("span", null, `Page ${view.page} of ${pages}`),
      el("button", { type: "button", disabled: view.page === pages, onclick: go(view.page + 1) }, "Next"),
      el("button", { type: "button", disabled: view.page === pages, onclick: go(pages) }, "Last"), per);
  }

  // ---- controls

  const sliders = [];
  function shownWeights() {
    return view.weights || REGIONS.map(() => 1);
  }
  function showControls() {
    const weights = shownWeights();
    sliders.forEach(({ input, output }, r) => {
      if (Number(input.value) !== weights[r]) input.value = weights[r];
      output.textContent = weights[r].toFixed(2);
    });
    $("preset").value = view.preset;
    const preset = data.presets.find((p) => p.id === view.preset);
    $("weightnote").textContent = preset ? preset.note : "The mean over the comparable regions, with your weights. Verdicts stay as they are; undecidable pairs stand last.";
    $("resetweights").disabled = view.preset === AS_SCANNED;
    $("minvalue").textContent = view.min > 0 ? "from " + view.min.toFixed(2) : "any";
    for (const [id, value] of [["min", view.min], ["kind", view.kind], ["changed", view.changed], ["decision", view.decision], ["sort", view.sort]]) $(id).value = value;
    for (const id of ["query", "seller"]) if ($(id).value !== view[id]) $(id).value = view[id];
    for (const box of $("verdicts").querySelectorAll("input")) box.checked = !view.verdicts || view.verdicts.has(box.value);
    $("boxes").checked = view.boxes;
    const active = [view.verdicts, view.kind, view.seller, view.query, view.changed, view.decision, view.min > 0].filter(Boolean).length;
    $("resetfilters").disabled = !active;
    $("paneltoggle").textContent = "Filters and region weights" + (active || view.weights ? ` (${active + (view.weights ? 1 : 0)} set)` : "");
  }
  function clearFilters() {
    change({ verdicts: null, kind: "", seller: "", query: "", changed: "", decision: "", min: 0 });
  }
  function tally(values) {
    const counts = new Map();
    for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
    return [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
  }
  function buildControls() {
    for (const preset of data.presets) $("preset").append(el("option", { value: preset.id }, preset.label));
    $("preset").append(el("option", { value: CUSTOM, hidden: true }, "Your own"));
    $("preset").addEventListener("change", (event) => {
      const preset = data.presets.find((p) => p.id === event.target.value);
      if (preset) change({ preset: preset.id, weights: preset.weights && [...preset.weights] });
    });
    REGIONS.forEach((region, r) => {
      const id = "weight-" + region;
      const input = el("input", { type: "range", id, min: 0, max: 1, step: 0.01, value: 1, oninput: () => {
        const weights = [...shownWeights()];
        weights[r] = Number(input.value);
        change({ weights, preset: CUSTOM });
      } });
      const output = el("output", { for: id });
      sliders.push({ input, output });
      $("sliders").append(el("div", { class: "slider" }, el("label", { for: id }, LABEL[region]), input, output));
    });
    $("resetweights").addEventListener("click", () => change({ weights: null, preset: AS_SCANNED }));
    $("resetfilters").addEventListener("click", clearFilters);

    const verdictCounts = new Map(tally(pairs.map((p) => p.relation)));
    for (const verdict of VERDICTS) {
      const n = verdictCounts.get(verdict) || 0;
      const box = el("input", { type: "checkbox", value: verdict, checked: true, onchange: () => {
        const on = [...$("verdicts").querySelectorAll("input")].filter((b) => b.checked).map((b) => b.value);
        change({ verdicts: on.length === VERDICTS.length ? null : new Set(on) });
      } });
      $("verdicts").append(el("label", null, box, badge(verdict), el("span", { class: "n" }, number(n))));
    }
    const kinds = tally(pairs.flatMap((p) => [...p.kinds]));
    $("kind").append(el("option", { value: "" }, "Any garment"));
    for (const [prefix, label] of [["group:", "Group"], ["garment:", "Detected category"], ["catalogue:", "Category in the catalogue"]]) {
      const options = kinds.filter(([kind]) => kind.startsWith(prefix));
      if (options.length) {
        $("kind").append(el("optgroup", { label }, options.map(([kind, n]) => el("option", { value: kind }, `${kind.slice(prefix.length)} (${number(n)})`))));
      }
    }
    $("changed").append(el("option", { value: "" }, "Any"), ...REGIONS.map((r) => el("option", { value: r }, LABEL[r])));
    $("sellers").append(...data.sellers.map((s) => el("option", { value: s })));
    for (const id of ["query", "seller"]) $(id).addEventListener("input", (event) => change({ [id]: event.target.value }));
    for (const id of ["kind", "changed", "decision", "sort"]) $(id).addEventListener("change", (event) => change({ [id]: event.target.value }));
    $("min").addEventListener("input", (event) => change({ min: Number(event.target.value) }));
    $("boxes").addEventListener("change", (event) => change({ boxes: event.target.checked, page: view.page }));
    $("savecsv").addEventListener("click", () => download("suspects-view.csv", viewLines()));
    $("savedismissed").addEventListener("click", () => download("dismissed.csv", dismissedLines()));
    $("copyview").addEventListener("click", () => copy(pageLink(encodeView()), "Link to this view copied."));
    $("paneltoggle").addEventListener("click", () => {
      const open = $("panel").classList.toggle("open");
      $("paneltoggle").setAttribute("aria-expanded", open);
    });
    $("skip").addEventListener("click", (event) => {
      event.preventDefault();
      ($("list").firstElementChild || $("empty")).focus();
    });
    document.body.append(el("datalist", { id: "reasons" },
      ["another design", "common design", "licensed", "same company", "prior agreement", "wrong garment compared"].map((r) => el("option", { value: r }))));
  }
  async function copy(text, done) {
    try {
      await navigator.clipboard.writeText(text);
      toast(done);
    } catch {
      window.prompt("Copy this link", text);
    }
  }

  // ---- the large comparison

  let compared = null;
  function crop(pair, side, r) {
    const garment = pair.garments[side];
    const picture = garment && data.pictures[garment.picture];
    const box = garment && garment.boxes && garment.boxes[boxIndex(pair, side, r)];
    if (!picture || !picture.src || !box) return el("span", null, garment?.presence?.[boxIndex(pair, side, r)] === ABSENT ? "no such part" : "not visible");
    const half = Math.max(box[2] - box[0], box[3] - box[1], 8) * 0.55;
    const x = (box[0] + box[2]) / 2 - half, y = (box[1] + box[3]) / 2 - half;
    return svg("svg", { class: side === 1 && pair.mirrored ? "flip" : "", viewBox: `${x} ${y} ${half * 2} ${half * 2}`, role: "img", "aria-label": `${LABEL[REGIONS[r]]}, ${sideName(pair, side).toLowerCase()}` },
      svg("image", { href: picture.src, x: 0, y: 0, width: picture.w, height: picture.h, preserveAspectRatio: "none" }));
  }
  // A picture drawn as cloth was bent: a grid of [x, y there, x, y here], each half of a cell by its affine map.
  function drawBent(pen, image, picture, grid, scale) {
    const half = (corners) => {
      const [[x0, y0, u0, v0], [x1, y1, u1, v1], [x2, y2, u2, v2]] = corners;
      const area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0);
      if (!area) return;
      const map = (p0, p1, p2) => {
        const across = ((p1 - p0) * (y2 - y0) - (p2 - p0) * (y1 - y0)) / area;
        const down = ((p2 - p0) * (x1 - x0) - (p1 - p0) * (x2 - x0)) / area;
        return [across, down, p0 - across * x0 - down * y0].map((value) => value * scale);
      };
      const [a, c, e] = map(u0, u1, u2), [b, d, f] = map(v0, v1, v2);
      pen.save();
      pen.beginPath();
      // Half a pixel further out: between two halves there shall be no seam.
      const [mu, mv] = [(u0 + u1 + u2) / 3, (v0 + v1 + v2) / 3];
      for (const [, , u, v] of corners) {
        const out = 1 + 1 / (scale * Math.hypot(u - mu, v - mv) + 1e-9);
        pen.lineTo((mu + (u - mu) * out) * scale, (mv + (v - mv) * out) * scale);
      }
      pen.clip();
      pen.transform(a, b, c, d, e, f);
      pen.drawImage(image, 0, 0, picture.w, picture.h);
      pen.restore();
    };
    for (let j = 0; j + 1 < grid.length; j++) {
      for (let i = 0; i + 1 < grid[j].length; i++) {
        half([grid[j][i], grid[j][i + 1], grid[j + 1][i]]);
        half([grid[j][i + 1], grid[j + 1][i + 1], grid[j + 1][i]]);
      }
    }
  }
  // The original laid upon the suspect's photograph as the scan found it; a slider fades from one to the other.
  function superposition(pair) {
    const pictures = pair.garments.map((garment) => garment && data.pictures[garment.picture]);
    if (!pair.laid || pictures.some((picture) => !picture || !picture.src)) return null;
    const source = el("img", { src: pictures[0].src, alt: "" });
    const below = el("img", { src: pictures[1].src, alt: "", decoding: "async" });
    const above = el("canvas");
    const fade = (share) => { above.style.opacity = share / 100; };
    fade(50);
    const frame = el("div", { class: "photo laid" }, below, above);
    const draw = () => {
      const { w, h } = pictures[1];
      const scale = Math.min(frame.clientWidth / w, frame.clientHeight / h);
      if (!(scale > 0)) return;
      for (const layer of [below, above]) {
        layer.style.width = scale * w + "px";
        layer.style.height = scale * h + "px";
        layer.style.left = (frame.clientWidth - scale * w) / 2 + "px";
        layer.style.top = (frame.clientHeight - scale * h) / 2 + "px";
      }
      const dense = scale * Math.min(window.devicePixelRatio || 1, 2);
      above.width = Math.round(dense * w);
      above.height = Math.round(dense * h);
      if (source.complete && source.naturalWidth) drawBent(above.getContext("2d"), source, pictures[0], pair.laid, dense);
    };
    source.addEventListener("load", draw);
    new ResizeObserver(draw).observe(frame);
    return el("figure", null, frame,
      el("figcaption", { class: "sidehead" }, el("b", null, "Laid upon each other"),
        el("label", { class: "fade" }, "suspect", el("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Fade from the suspect to the original", oninput: (event) => fade(event.target.value) }), "original")));
  }
  function openCompare(pair) {
    compared = pair;
    const at = shown.indexOf(pair);
    $("comparehead").replaceChildren(at >= 0 ? `#${number(at + 1)} ` : "", badge(pair.relation), " " + whatChanged(pair) + (pair.mirrored ? " ⇄ mirrored, the suspect's details are flipped" : ""));
    const body = $("comparebody");
    body.replaceChildren(
      el("div", { class: "comparepair" + (pair.laid ? " three" : "") + (view.boxes ? "" : " noboxes") }, [0, 1].map((side) => el("figure", null,
        photo(pair, side, {}, "div"),
        el("figcaption", { class: "sidehead" }, el("b", null, sideName(pair, side)),
          el("span", { class: "mono" }, (side === 0 ? pair.original : pair.suspect).id)))), superposition(pair)),
      el("div", { class: "crops" }, REGIONS.map((region, r) => el("div", { class: "crop", onmouseenter: () => highlight(body, r), onmouseleave: () => highlight(body, null) },
        el("h3", null, el("span", { class: "letter " + pair.states[r], "aria-hidden": "true" }, LETTERS[region]), LABEL[region]),
        el("div", { class: "pair" }, crop(pair, 0, r), crop(pair, 1, r)),
        el("p", null, STATE_LABEL[pair.states[r]] + evidenceText(pair, r))))));
    for (const [id, decision] of [["compareconfirm", "confirmed"], ["comparedismiss", "dismissed"]]) {
      $(id).setAttribute("aria-pressed", decisionOf(pair)?.decision === decision);
    }
    $("compareprev").disabled = at <= 0;
    $("comparenext").disabled = at < 0 || at >= shown.length - 1;
    // Not on a button: the key that opened this, still held, must not decide anything.
    const lost = !$("compare").open || document.activeElement?.disabled || !$("compare").contains(document.activeElement);
    if (!$("compare").open) $("compare").showModal();
    if (lost) $("comparehead").focus();
  }
  function stepCompare(step) {
    const next = shown[shown.indexOf(compared) + step];
    if (next) openCompare(next);
  }
  $("compareprev").addEventListener("click", () => stepCompare(-1));
  $("comparenext").addEventListener("click", () => stepCompare(1));
  for (const [id, decision] of [["compareconfirm", "confirmed"], ["comparedismiss", "dismissed"]]) {
    $(id).addEventListener("click", () => { decide(compared, decision); openCompare(compared); });
  }
  $("compareclose").addEventListener("click", () => $("compare").close());
  $("compare").addEventListener("click", (event) => { if (event.target === $("compare")) $("compare").close(); });
  $("compare").addEventListener("keydown", (event) => {
    if (event.target.matches("input")) return; // a slider's own keys
    if (event.key === "ArrowLeft") stepCompare(-1);
    if (event.key === "ArrowRight") stepCompare(1);
  });

  // ---- keyboard, only while the focus is on a suspect, so that no letter is taken from other tools

  $("list").addEventListener("keydown", (event) => {
    const node = event.target.closest(".card");
    if (!node || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
    const pair = pairById.get(node.dataset.id);
    const actions = {
      j: () => node.nextElementSibling?.focus(), k: () => node.previousElementSibling?.focus(),
      c: () => decide(pair, "confirmed"), d: () => decide(pair, "dismissed"), o: () => openCompare(pair),
      b: () => change({ boxes: !view.boxes, page: view.page }),
    };
    if (Object.hasOwn(actions, event.key)) {
      event.preventDefault();
      if (!event.repeat || "jk".includes(event.key)) actions[event.key]();
    }
  });

  // ---- the head of the page

  function table(head, rows, numeric = []) {
    const cell = (tag, value, i) => el(tag, { class: numeric.includes(i) ? "number" : null, scope: tag === "th" ? "col" : null }, value);
    return el("div", { class: "tablewrap" }, el("table", null,
      el("thead", null, el("tr", null, head.map((h, i) => cell("th", h, i)))),
      el("tbody", null, rows.map((row) => el("tr", null, row.map((v, i) => cell("td", v, i)))))));
  }
  function buildHead() {
    const { run } = data;
    $("subtitle").textContent = run.subtitle;
    for (const tile of run.tiles) $("tiles").append(el("div", null, el("dt", null, tile.label), el("dd", null, tile.value, tile.note ? el("small", null, " " + tile.note) : null)));
    if (pairs.length) {
      const counts = new Map(tally(pairs.map((p) => p.relation)));
      $("tiles").append(el("div", { class: "wide" }, el("dt", null, data.notice ? "By verdict, on this page" : "Suspected pairs by verdict"), el("dd", { class: "split" },
        VERDICTS.filter((v) => counts.get(v)).map((v) => el("span", null, badge(v), " " + number(counts.get(v)))))));
    }
    if (data.notice) {
      $("notice").textContent = data.notice;
      $("notice").hidden = false;
    }
    const body = $("runbody");
    if (run.stages.length) body.append(table(["Stage", "In", "Out", "Failed or left out", "Seconds"], run.stages, [1, 2, 3, 4]));
    if (run.facts.length) body.append(table(["Fact", "Value"], run.facts.map(([name, value]) => [name, el("span", { class: "mono" }, value)])));
    const failed = run.failures.reduce((sum, f) => sum + f.count, 0);
    $("failures").hidden = !failed;
    $("failhead").textContent = `Not screened: ${count(failed, "item")}`;
    if (failed) {
      $("failbody").append(el("p", null, "These items are not part of the comparison. Nothing is said about them."),
        table(["Reason", "What it means", "Items"], run.failures.map((f) => [el("code", null, f.reason), f.meaning, number(f.count)]), [2]));
      const rows = run.failures.flatMap((f) => f.items.map(([id, image, error]) => [el("code", null, id), image, el("code", null, f.reason), error]));
      $("failbody").append(table(["Item", "Image", "Reason", "Detail"], rows));
      if (rows.length < failed) $("failbody").append(el("p", null, `The first items of each reason are listed here; all ${number(failed)} stand in the run's item and garment tables.`));
    }
    $("foot").textContent = run.foot;
  }

  // ---- start

  function openHash() {
    const hash = location.hash.slice(1);
    if (!hash.startsWith("pair-")) {
      view = decodeView(hash);
      render();
      return;
    }
    const pair = pairById.get(hash.slice(5));
    rerank();
    if (pair && !shown.includes(pair)) { view = { ...BLANK }; rerank(); }
    if (!pair) toast("This pair is no longer in the list.");
    else view.page = Math.floor(shown.indexOf(pair) / view.per) + 1;
    render();
    if (pair) {
      clearTimeout(hashTimer); // the address keeps naming the pair until the view changes
      const node = card(pair).node;
      node.scrollIntoView({ block: "start" });
      node.focus({ preventScroll: true });
    }
  }
  buildHead();
  buildControls();
  showDecisionCount();
  openHash();
  window.addEventListener("hashchange", openHash);
  window.addEventListener("beforeprint", () => {
    for (const image of $("list").querySelectorAll("img")) image.loading = "eager";
  });
  document.documentElement.dataset.ready = "yes";
})();
