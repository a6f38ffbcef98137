// What an operator does at the console. Each step leaves the world as the next one needs it.

import { holds, same, until } from "../waiting.mjs";
import { CANARY, NARROW } from "./desk.mjs";

const REFUSED = "M_BAD_JSON";
const WHY_BACK = "the homeserver takes it again";
const WHY_PAUSED = "moving the homeserver";
const WHY_REPAIRED = "their server lets us in again";

/** Every page that one comes to from the menu. */
const MENU = ["Overview", "Dead letters", "Operations", "Pauses", "Tasks", "Audit", "Help"];

export const STEPS = [
    ["who may not look at the outbox is told so, and gets no cookie", refusedWithoutTheScope],
    ["a token becomes a cookie that no script reads and no other site sends", signIn],
    ["a dead letter is found from the overview, with why it died and what to do", findADeadLetter],
    ["who may look only finds no way to act, and is refused when trying", lookOnly],
    ["a requeue says first what it will do; then the message is delivered, and the page shows it", requeue],
    ["a form that is not of this session changes nothing", foreignForm],
    ["a conversation is paused, and what is written meanwhile waits until it is resumed", pauseAndResume],
    ["dead letters of one cause come back at once, as the dry run said", requeueByFilter],
    ["what was refused in several rooms is repaired in all of them with one form", repairAll],
    ["each act stands in the audit trail, with who and why", audit],
    ["the keys lead to pages, lists and the search", keys],
    ["everything works without a script", withoutScript],
    ["pages fit a phone, and are dark where that is wanted", phoneAndDark],
    ["after signing out no page is shown", signOut],
];

async function refusedWithoutTheScope({ desk, operators }) {
    const here = await desk();
    await here.signIn(operators.stranger);
    await here.shows("outbox:read");
    same("cookies", await here.context.cookies(), []);
    await here.go("/console/dead");
    holds("a page asks to sign in", new URL(here.page.url()).pathname === "/console/sign-in");
    await here.close();
}

async function signIn(world) {
    const { desk, operators } = world;
    const here = await desk();
    await here.go("/console/audit");
    await here.picture("sign-in");
    await here.page.getByLabel("Token").fill(operators.operator.token);
    await here.page.getByRole("button", { name: "Sign in" }).click();
    await here.page.waitForURL("**/console/audit");
    const [cookie, ...others] = await here.context.cookies();
    same("other cookies", others, []);
    same("the cookie", [cookie.httpOnly, cookie.sameSite, cookie.path], [true, "Strict", "/console"]);
    same("what a script reads", await here.page.evaluate(() => document.cookie), "");
    holds("it ends with the token", cookie.expires > Date.now() / 1000 && cookie.expires < Date.now() / 1000 + 90_000);
    world.here = here;
}

/** A message that the homeserver refuses, beside one that it takes. */
async function findADeadLetter(world) {
    const { ada, grace, homeserver, here } = world;
    world.conversation = await ada.converse(grace, "Engines");
    await ada.becomes(await ada.say(world.conversation, `${CANARY}: hello`), "delivered");
    homeserver.refuse(REFUSED);
    world.dead = await ada.say(world.conversation, `${CANARY}: the homeserver will not have this`);
    await ada.becomes(world.dead, "dead");
    await ada.becomes(await ada.say(world.conversation, `${CANARY}: this one it takes`), "delivered");

    await here.go("/console");
    await here.shows("1 dead letter");
    await here.picture("overview-with-a-dead-letter");
    await here.page.locator("#figure-dead-letters a").click();
    await here.shows(REFUSED);
    await here.picture("dead-letters");
    await here.page.locator("main table tbody tr").first().getByRole("link").first().click();
    await until("its operation is open", () => here.page.url().includes("/console/operations"), 20);
    if (!(await here.page.locator("#sentence").count())) {
        await here.page.locator("main table tbody tr").first().getByRole("link").first().click();
    }
    await here.page.locator("#sentence").waitFor();
    const lead = await here.page.locator("#lead").innerText();
    holds(`the page says why it is dead: ${lead}`, /dead/i.test(lead) && lead.includes(REFUSED));
    holds(`and what to do: ${lead}`, lead.includes("What to do"));
    world.operation = here.page.url();
    await here.picture("dead-operation");
    // The attempt, as the homeserver answered it.
    await here.shows("400");
}

async function lookOnly({ desk, operators, operation }) {
    const here = await desk();
    await here.signIn(operators.reader);
    await here.go(operation);
    await here.page.locator("#sentence").waitFor();
    same("ways to act", await here.page.locator("#actions a").count(), 0);
    const answer = await here.go(`${operation}/requeue`);
    same("the answer", answer.status(), 403);
    await here.shows("outbox:operate");
    await here.close();
}

async function requeue(world) {
    const { ada, here, dead, operation } = world;
    await here.go(operation);
    await here.page.locator("#actions").getByRole("link", { name: /^Requeue/ }).click();
    await here.page.locator("#confirm").waitFor();
    await here.picture("requeue-preview");
    const preview = await here.text();
    holds("the preview says what stays ahead", /ahead|before/i.test(preview));
    same("it is still dead", await ada.delivery(dead), "dead");
    await here.page.getByLabel(/^Reason/).fill(WHY_BACK);
    await here.page.locator("#confirm button.main").click();
    await here.page.waitForURL(`${operation}**`);
    // Without a hand on the keyboard: the page renews itself.
    await until("the page shows that it is delivered", async () => /delivered/i.test(await here.page.locator("h1").innerText()), 30);
    await ada.becomes(dead, "delivered");
    await here.picture("delivered-operation");
}

async function foreignForm({ here, setting, conversation }) {
    const [cookie] = await here.context.cookies();
    const form = new URLSearchParams({ scope: "conversation", conversation_id: conversation, reason: "mischief" });
    const headers = { Cookie: `${cookie.name}=${cookie.value}`, "Content-Type": "application/x-www-form-urlencoded" };
    for (const forged of [{}, { csrf: "00".repeat(32) }]) {
        const body = new URLSearchParams([...form, ...Object.entries(forged)]);
        const answer = await fetch(`${setting.api_url}/console/pause`, { method: "POST", headers, body, redirect: "manual" });
        same("the answer", answer.status, 403);
    }
    // Our own form, sent by the page of somebody else.
    await here.go(`/console/pause?scope=conversation&conversation_id=${conversation}`);
    const csrf = await here.page.locator("#confirm input[name=csrf]").inputValue();
    const elsewhere = { ...headers, Origin: "https://elsewhere.example", "Sec-Fetch-Site": "cross-site" };
    const body = new URLSearchParams([...form, ["csrf", csrf]]);
    const answer = await fetch(`${setting.api_url}/console/pause`, { method: "POST", headers: elsewhere, body, redirect: "manual" });
    same("the answer to a stranger's page", answer.status, 403);
    await here.go(`/console/conversations/${conversation}`);
    holds("nothing is paused", !(await here.text()).includes("mischief"));
}

async function pauseAndResume({ ada, here, conversation }) {
    await here.go(`/console/conversations/${conversation}`);
    await here.picture("conversation");
    await here.page.locator("#actions").getByRole("link", { name: /^Pause/ }).click();
    await here.page.getByLabel(/^Reason/).fill(WHY_PAUSED);
    await here.page.locator("#confirm button.main").click();
    await here.shows(WHY_PAUSED);
    const meanwhile = await ada.say(conversation, `${CANARY}: written during the pause`);
    await here.go(`/console/search?q=${meanwhile}`);
    await here.shows(WHY_PAUSED);
    await here.picture("waiting-operation");
    same("it waits", await ada.delivery(meanwhile), "pending");
    await here.go(`/console/conversations/${conversation}`);
    await here.page.locator("#actions").getByRole("link", { name: /^Resume/ }).click();
    await here.page.locator("#confirm button.main").click();
    await ada.becomes(meanwhile, "delivered");
    await here.go("/console/pauses");
    await here.picture("pauses");
}

async function requeueByFilter({ ada, grace, homeserver, here }) {
    const conversation = await ada.converse(grace, "Looms");
    await ada.becomes(await ada.say(conversation, `${CANARY}: first`), "delivered");
    const dead = [];
    for (let n = 1; n <= 3; n += 1) {
        homeserver.refuse(REFUSED);
        dead.push(await ada.say(conversation, `${CANARY}: dead ${n}`));
        await ada.becomes(dead.at(-1), "dead");
    }
    await here.go("/console/dead");
    await here.shows(REFUSED);
    await here.picture("groups");
    await here.page.getByRole("link", { name: /^Requeue/ }).first().click();
    await here.shows("3");
    await here.picture("dry-run");
    await here.page.getByLabel(/^Reason/).fill("the limit was raised");
    await here.page.locator("form button.main").first().click();
    for (const message of dead) await ada.becomes(message, "delivered");
    await taskIsDone(here, 3);
    await here.picture("task");
}

/** The page of a task that did all of `number`, renewed by itself. */
async function taskIsDone(here, number) {
    await until("the task is done", async () => /^done/.test(await here.page.locator("h1").innerText()), 30);
    await here.shows(`${number} of ${number} done.`);
    same("ways to act on what is over", await here.page.locator("#actions a").count(), 0);
}

/** Invitations that the homeserver refused, in two rooms. */
async function repairAll({ ada, grace, homeserver, here, operators }) {
    for (const name of ["Mills", "Dynamos"]) {
        const conversation = await ada.converse(grace, name);
        await ada.becomes(await ada.say(conversation, `${CANARY}: hello`), "delivered");
        homeserver.refuseInvitation("M_FORBIDDEN");
        await ada.invite(conversation, operators.stranger.id);
    }
    await here.go("/console/dead");
    const group = here.page.locator("#groups tbody tr").filter({ hasText: "M_FORBIDDEN" });
    await until("both invitations are dead", async () => /^2\b/.test((await group.allInnerTexts()).join("")), 30);
    await group.getByRole("link", { name: "Repair…" }).click();
    await here.shows("2 conversations have invitations that died of M_FORBIDDEN");
    await here.picture("repair-all");
    await here.page.getByLabel(/^Reason/).fill(WHY_REPAIRED);
    await here.page.locator("#confirm button.main").click();
    await taskIsDone(here, 2);
    same("rooms that it acted in", await here.page.locator("#audit tbody a[href^='/console/conversations/']").count(), 2);
    await here.picture("repair-task");
    await here.go("/console/dead");
    holds("nothing is left of it", !(await here.text()).includes("M_FORBIDDEN"));
}

async function audit({ here, operators }) {
    await here.page.getByRole("navigation").getByRole("link", { name: "Audit" }).click();
    const rows = await here.page.locator("main table tbody").innerText();
    for (const word of [operators.operator.id.slice(0, 8), "requeue", "pause", "resume", "repair", WHY_BACK, WHY_PAUSED, WHY_REPAIRED]) {
        holds(`the trail has "${word}"`, rows.includes(word));
    }
    holds("it has nothing that was refused", !rows.includes("mischief"));
    await here.picture("audit");
}

async function keys({ here, conversation }) {
    const { page } = here;
    await here.go("/console");
    await page.keyboard.press("g");
    await page.keyboard.press("a");
    await page.waitForURL("**/console/audit");
    await page.keyboard.press("/");
    await page.keyboard.type(conversation);
    await page.keyboard.press("Enter");
    await page.waitForURL(`**/console/conversations/${conversation}`);
    await page.keyboard.press("?");
    await page.waitForURL("**/console/help");
    // Whoever has no mouse comes to the content at once.
    await here.go("/console/audit");
    await page.keyboard.press("Tab");
    same("the first stop", await page.evaluate(() => document.activeElement.className), "skip");
    await page.keyboard.press("j");
}

async function withoutScript({ ada, desk, operators, homeserver, conversation }) {
    homeserver.refuse(REFUSED);
    const dead = await ada.say(conversation, `${CANARY}: without a script`);
    await ada.becomes(dead, "dead");
    const here = await desk({ script: false });
    await here.signIn(operators.operator);
    await here.page.getByLabel("Find by id").fill(dead);
    await here.page.getByRole("button", { name: "Find" }).click();
    if (!(await here.page.locator("#sentence").count())) {
        await here.page.locator("#operations tbody tr").first().getByRole("link").first().click();
    }
    await here.page.locator("#actions").getByRole("link", { name: /^Requeue/ }).click();
    await here.page.getByLabel(/^Reason/).fill(WHY_BACK);
    await here.page.locator("#confirm button.main").click();
    await ada.becomes(dead, "delivered");
    await here.close();
}

async function phoneAndDark({ desk, operators, operation, conversation }) {
    for (const look of [{ viewport: NARROW }, { viewport: NARROW, dark: true }, { dark: true }]) {
        const here = await desk(look);
        await here.signIn(operators.operator);
        await here.page.waitForURL("**/console");
        const background = await here.page.evaluate(() => getComputedStyle(document.body).backgroundColor);
        const [red] = background.match(/\d+/g).map(Number);
        holds(`the background is ${background}`, look.dark ? red < 80 : red > 200);
        for (const name of MENU) {
            await here.page.getByRole("navigation").getByRole("link", { name, exact: true }).click();
            await here.page.locator("h1").first().waitFor();
            await here.fits();
            await here.picture(name.toLowerCase().replaceAll(" ", "-"));
        }
        for (const [name, where] of [["operation", operation], ["conversation", `/console/conversations/${conversation}`]]) {
            await here.go(where);
            await here.fits();
            await here.picture(name);
        }
        await here.close();
    }
}

async function signOut({ here }) {
    await here.go("/console");
    await here.page.getByRole("button", { name: "Sign out" }).click();
    await here.page.waitForURL("**/console/sign-in");
    same("cookies", await here.context.cookies(), []);
    await here.go("/console/audit");
    await here.page.getByLabel("Token").waitFor();
    await here.close();
}
