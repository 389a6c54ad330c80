// The form for a job's input: a control for each field that task.Input's JSON schema names.

const isText = (value) => typeof value === "string";
const isLine = (value) => isText(value) && value !== "" && !/[\r\n]/.test(value);
const literal = (value) => value?.rawJSON ?? value; // of a number that parse has kept as it was written
const element = (tag, properties) => Object.assign(document.createElement(tag), properties);
const rows = (text) => Math.min(12, text.split("\n").length + 2);
const area = (value) => element("textarea", { value, rows: rows(value), spellcheck: false });

function options(schema) {
  if (schema.type === "boolean") return [true, false];
  return schema.enum ?? ("const" in schema ? [schema.const] : undefined);
}

// The kinds of control. A field gets the first that suits its schema and its value (undefined if it has none).
const KINDS = [
  {
    suits: (schema, value) => (value === undefined ? options(schema) : options(schema)?.includes(value)),
    make: (schema, value, blank) => {
      const select = element("select");
      select.add(new Option(blank, ""));
      for (const option of options(schema)) select.add(new Option(option, JSON.stringify(option)));
      select.value = JSON.stringify(value) ?? "";
      return select;
    },
    read: checked,
  },
  {
    suits: ({ type }, value = 0) =>
      (type === "integer" || type === "number") && (typeof value === "number" || value?.rawJSON !== undefined),
    make: ({ type, minimum = "", maximum = "" }, value = "") => {
      const [min, max, step] = [minimum, maximum, type === "integer" ? 1 : "any"];
      return element("input", { type: "number", min, max, step, value: literal(value) });
    },
    read: (text) => checked(text.replace(/^(-?)0+(?=\d)/, "$1").replace(/^(-?)(?=\.)/, (sign) => `${sign}0`)), // 007, .5
  },
  {
    suits: ({ type }, value = "line") => type === "string" && isLine(value),
    make: (_, value = "") => element("input", { type: "text", value }),
    read: JSON.stringify,
  },
  {
    hint: "One per line.",
    suits: ({ type, items }, value = []) =>
      type === "array" && items?.type === "string" && !options(items) && Array.isArray(value) && value.every(isLine),
    make: (_, value = []) => area(value.join("\n")),
    read: (text) => JSON.stringify(text.split("\n").filter((line) => line !== "")),
  },
  {
    hint: "As JSON.",
    suits: () => true,
    make: (_, value) => area(JSON.stringify(value, null, 2) ?? ""),
    read: checked,
  },
];

let fields = []; // the fields that are shown

/** Read JSON; where the browser can, a number that JavaScript would write otherwise is kept as it is in `text`. */
export function parse(text) {
  return JSON.parse(text, (_, value, context) => {
    const asWritten = typeof value !== "number" || !JSON.rawJSON || String(value) === context?.source;
    return asWritten ? value : JSON.rawJSON(context.source);
  });
}

/** `text` as it is, if it is JSON with numbers that have an end. */
function checked(text) {
  JSON.parse(text, (_, value) => {
    if (Math.abs(value) === Infinity && typeof value === "number") throw new Error("it has too large a number");
    return value;
  });
  return text.trim();
}

/** Whether there is a field for everything in `input`. */
export function holds(schema, input) {
  const names = Object.keys(schema?.properties ?? {});
  return names.length > 0 && input instanceof Object && Object.keys(input).every((name) => names.includes(name));
}

/** Fill `place` with the fields of `schema`, and the fields with `input`. */
export function show(place, schema, input) {
  fields = Object.entries(schema.properties).map(([name, property], number) => {
    const value = Object.hasOwn(input, name) ? input[name] : undefined;
    const kind = KINDS.find(({ suits }) => suits(property, value));
    const required = (schema.required ?? []).includes(name);
    const blank = "default" in property ? `default: ${JSON.stringify(property.default)}` : "not sent";
    const placeholder = required ? "" : blank;
    const control = kind.make(property, value, placeholder);
    Object.assign(control, { id: `field-${number}`, required, placeholder });
    control.setAttribute("aria-describedby", `hint-${number}`);
    const said = [property.description, kind.hint, required && "Required."].filter(isText).join(" ");
    const row = element("div");
    row.append(
      element("label", { htmlFor: control.id, textContent: name }),
      element("p", { id: `hint-${number}`, className: "hint", textContent: said }),
      control,
    );
    return { name, kind, control, row };
  });
  place.replaceChildren(...fields.map(({ row }) => row));
}

/**
 * The input in the fields as JSON, with each number as it was typed: JavaScript would round a large one. Blank fields are
 * left out: the worker has defaults for these. Throws if a field is not JSON.
 */
export function read() {
  for (const { name, control } of fields) {
    if (control.validity.badInput) throw new Error(`${name} is no number that can be sent.`); // its value would be ""
  }
  const filled = fields.filter(({ control }) => control.value.trim() !== "");
  const members = filled.map(({ name, kind, control }) => {
    try {
      return `  ${JSON.stringify(name)}: ${kind.read(control.value)}`;
    } catch (error) {
      throw new Error(`${name} is not JSON: ${error.message}`);
    }
  });
  return members.length ? `{\n${members.join(",\n")}\n}` : "{}";
}
