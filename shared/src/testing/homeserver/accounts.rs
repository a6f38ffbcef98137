//! Registration, login, logout, and who a token belongs to.
use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha1::Sha1;
use uuid::Uuid;

use super::handlers::Ask;
use super::reply::{Answer, Failure};
use super::routes::query_param;
use super::state::{Account, Requester, State};

/// Who asks, by token, and for an application service by `user_id` and `device_id` of the query.
pub(super) fn authenticate(state: &State, ask: &Ask) -> Result<Requester, Failure> {
    let missing = || Failure::new(401, "M_MISSING_TOKEN", "Missing access token");
    let token = ask.token.as_deref().ok_or_else(missing)?;
    if let Some(appservice) = state.appservices.iter().find(|one| one.as_token == token) {
        let sender = state.user_id(&appservice.sender_localpart);
        let user = query_param(&ask.query, "user_id").unwrap_or_else(|| sender.clone());
        if user != sender && !appservice.owns(&user) {
            return Err(Failure::forbidden("Application service cannot masquerade as this user."));
        }
        let account = state.accounts.get(&user);
        let account = account.ok_or_else(|| Failure::forbidden("Application service has not registered this user"))?;
        let device = query_param(&ask.query, "device_id");
        if let Some(device) = &device
            && !account.devices.contains(device)
        {
            let error =
                format!("Application service trying to use a device that doesn't exist ('{device}' for {user})");
            return Err(Failure::new(400, "M_UNKNOWN_DEVICE", error));
        }
        return Ok(Requester { user, device, appservice: Some(appservice.id.clone()), token: token.to_owned() });
    }
    let (user, device) = state.sessions.get(token).ok_or_else(Failure::unknown_token)?;
    Ok(Requester { user: user.clone(), device: Some(device.clone()), appservice: None, token: token.to_owned() })
}

pub(super) fn whoami(requester: &Requester) -> Value {
    let mut body = json!({ "user_id": requester.user, "is_guest": false });
    if let Some(device) = &requester.device {
        body["device_id"] = json!(device);
    }
    body
}

/// Its TURN servers; nothing at all when it has none.
pub(super) fn turn_servers(state: &State, requester: &Requester) -> Value {
    let Some(turn) = &state.turn else { return json!({}) };
    let until = state.clock.now_ms() / 1000 + turn.lifetime.as_secs();
    let username = format!("{until}:{}", requester.user);
    let mut mac = Hmac::<Sha1>::new_from_slice(turn.secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(username.as_bytes());
    let password = BASE64.encode(mac.finalize().into_bytes());
    json!({ "username": username, "password": password, "ttl": turn.lifetime.as_secs(), "uris": turn.uris })
}

pub(super) fn admin_nonce(state: &mut State) -> Value {
    let nonce = Uuid::new_v4().simple().to_string();
    state.nonces.insert(nonce.clone());
    json!({ "nonce": nonce })
}

/// Registration by whoever knows the shared secret.
pub(super) fn admin_register(state: &mut State, secret: &str, body: &Value) -> Answer {
    let text = |key: &str| {
        body[key].as_str().ok_or_else(|| Failure::new(400, "M_BAD_JSON", format!("{key} must be specified")))
    };
    let (nonce, username, password, mac) = (text("nonce")?, text("username")?, text("password")?, text("mac")?);
    let admin = body["admin"].as_bool().unwrap_or(false);
    if !state.nonces.remove(nonce) {
        return Err(Failure::bad("unrecognised nonce"));
    }
    if mac != registration_mac(secret, nonce, username, password, admin) {
        return Err(Failure::new(403, "M_UNKNOWN", "HMAC incorrect"));
    }
    let user = state.user_id(username);
    if state.appservices.iter().any(|one| one.owns(&user)) {
        return Err(Failure::new(400, "M_EXCLUSIVE", "This user ID is reserved by an application service."));
    }
    let account = Account { password: password.to_owned(), admin, ..Account::default() };
    add_account(state, &user, account)?;
    Ok(new_session(state, &user, None))
}

/// The proof that a registration knows the shared secret: HMAC-SHA1, as Synapse's admin API defines it.
pub(crate) fn registration_mac(secret: &str, nonce: &str, username: &str, password: &str, admin: bool) -> String {
    use std::fmt::Write as _;
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update([nonce, username, password, if admin { "admin" } else { "notadmin" }].join("\0").as_bytes());
    mac.finalize().into_bytes().iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a string takes all");
        hex
    })
}

fn add_account(state: &mut State, user: &str, account: Account) -> Result<(), Failure> {
    if state.accounts.contains_key(user) {
        return Err(Failure::new(400, "M_USER_IN_USE", "User ID already taken."));
    }
    state.accounts.insert(user.to_owned(), account);
    Ok(())
}

fn new_session(state: &mut State, user: &str, device: Option<&str>) -> Value {
    let device = device.map_or_else(|| Uuid::new_v4().simple().to_string()[..10].to_uppercase(), str::to_owned);
    let token = format!("syt_{}", Uuid::new_v4().simple());
    if let Some(account) = state.accounts.get_mut(user) {
        account.devices.insert(device.clone());
    }
    state.sessions.insert(token.clone(), (user.to_owned(), device.clone()));
    json!({ "user_id": user, "access_token": token, "device_id": device, "home_server": state.server_name })
}

/// `POST /register`: only for application services.
pub(super) fn register(state: &mut State, ask: &Ask) -> Answer {
    let body = ask.object()?;
    let token = ask.token.as_deref();
    let Some(appservice) = state.appservices.iter().find(|one| Some(one.as_token.as_str()) == token).cloned() else {
        return Err(Failure::forbidden(
            "Registration has been disabled. Only m.login.application_service registrations are allowed.",
        ));
    };
    let localpart = body["username"].as_str().unwrap_or_default();
    let user = state.user_id(localpart);
    if !appservice.owns(&user) {
        return Err(Failure::new(400, "M_EXCLUSIVE", "Invalid user localpart for this application service."));
    }
    add_account(state, &user, Account::default())?;
    if body["inhibit_login"] == true {
        return Ok(json!({ "user_id": user, "home_server": state.server_name }));
    }
    Ok(new_session(state, &user, body["device_id"].as_str()))
}

pub(super) fn login(state: &mut State, ask: &Ask) -> Answer {
    let body = ask.object()?;
    let name = body["identifier"]["user"].as_str().or_else(|| body["user"].as_str()).unwrap_or_default();
    let user = if name.starts_with('@') { name.to_owned() } else { state.user_id(name) };
    let device = body["device_id"].as_str();
    match body["type"].as_str() {
        Some("m.login.password") => {
            let known = state.accounts.get(&user);
            let deactivated = known.is_some_and(|account| account.deactivated);
            let matches = known.is_some_and(|account| {
                !account.password.is_empty() && body["password"].as_str() == Some(account.password.as_str())
            });
            if deactivated {
                return Err(Failure::new(403, "M_USER_DEACTIVATED", "This account has been deactivated"));
            }
            if !matches {
                return Err(Failure::forbidden("Invalid username or password"));
            }
        }
        Some("m.login.application_service") => {
            let owner = state.appservices.iter().find(|one| Some(one.as_token.as_str()) == ask.token.as_deref());
            let owner = owner.ok_or_else(Failure::unknown_token)?;
            if !owner.owns(&user) && user != state.user_id(&owner.sender_localpart) {
                return Err(Failure::forbidden("Invalid access_token"));
            }
            if !state.accounts.contains_key(&user) {
                return Err(Failure::forbidden("Invalid username or password"));
            }
        }
        _ => return Err(Failure::bad("Unknown login type")),
    }
    Ok(new_session(state, &user, device))
}

/// Ends the session and deletes its device, and with it the durable memory of its transaction ids.
pub(super) fn logout(state: &mut State, requester: &Requester) -> Value {
    if let Some(device) = &requester.device {
        delete_device(state, &requester.user, device);
    }
    state.sessions.remove(&requester.token);
    json!({})
}

pub(super) fn delete_device(state: &mut State, user: &str, device: &str) {
    state.sessions.retain(|_, (of_user, of_device)| of_user != user || of_device != device);
    if let Some(account) = state.accounts.get_mut(user) {
        account.devices.remove(device);
    }
    state.txns.forget_device(user, device);
}

pub(super) fn require_admin(state: &State, requester: &Requester) -> Result<(), Failure> {
    if state.accounts.get(&requester.user).is_some_and(|account| account.admin) {
        return Ok(());
    }
    Err(Failure::forbidden("You are not a server admin"))
}

pub(super) fn deactivate(state: &mut State, user: &str) -> Answer {
    let account = state.accounts.get_mut(user).ok_or_else(|| Failure::not_found("User not found"))?;
    account.deactivated = true;
    let devices: BTreeSet<String> = std::mem::take(&mut account.devices);
    for device in devices {
        delete_device(state, user, &device);
    }
    Ok(json!({ "id_server_unbind_result": "success" }))
}
