//! Making rooms, and finding them again.
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Target, assert_refused, laws, random};

laws!(
    a_room_is_a_series_of_events,
    room_ids_name_no_server,
    an_alias_in_use_is_room_in_use,
    of_racing_creations_with_one_alias_one_succeeds,
    an_alias_resolves_without_a_token,
    an_alias_is_put_once,
    an_alias_is_deleted_by_whoever_made_it,
    a_malformed_invite_makes_no_room,
    an_unknown_local_user_can_be_invited,
    an_unreachable_remote_user_leaves_room_and_alias,
    a_creator_may_not_stand_in_the_power_levels,
    power_levels_can_be_overridden,
    initial_state_takes_the_place_of_the_preset,
    an_unknown_room_version_is_refused,
);

async fn a_room_is_a_series_of_events(hs: &Target) {
    let (user, guest) = (hs.user().await, hs.user().await);
    let name = random("room");
    let body = json!({
        "room_alias_name": name,
        "name": "A room",
        "invite": [guest.user_id()],
        "initial_state": [{ "type": "com.nova.conversation", "content": { "conversation_id": "1" } }],
    });
    let room = user.create_room(&body).await.unwrap();
    let events = user.timeline(&room).await.unwrap();
    let types: Vec<&str> = events.iter().map(|event| event.event_type.as_str()).collect();
    let expected = [
        "m.room.create",
        "m.room.member",
        "m.room.power_levels",
        "m.room.canonical_alias",
        "m.room.join_rules",
        "m.room.history_visibility",
        "m.room.guest_access",
        "com.nova.conversation",
        "m.room.name",
        "m.room.member",
    ];
    assert_eq!(types, expected);
    assert_eq!(events[0].content["room_version"], "12");
    assert_eq!(events[3].content["alias"], hs.alias(&name));
    assert_eq!(events[5].content["history_visibility"], "shared");
    assert_eq!(events[9].state_key.as_deref(), Some(guest.user_id()));
    let levels = user.state(&room, "m.room.power_levels", "").await.unwrap();
    let without_users = json!({ "users": {}, "invite": 0, "kick": 50, "redact": 50, "events_default": 0 });
    for (key, level) in without_users.as_object().unwrap() {
        assert_eq!(&levels[key], level, "{key}");
    }
}

async fn room_ids_name_no_server(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    assert!(room.starts_with('!') && !room.contains(':') && room.len() == 44, "{room}");
}

async fn an_alias_in_use_is_room_in_use(hs: &Target) {
    let (user, other) = (hs.user().await, hs.user().await);
    let body = json!({ "room_alias_name": random("room") });
    user.create_room(&body).await.unwrap();
    assert_refused!(user.create_room(&body).await, 400, "M_ROOM_IN_USE");
    assert_refused!(other.create_room(&body).await, 400, "M_ROOM_IN_USE");
}

async fn of_racing_creations_with_one_alias_one_succeeds(hs: &Target) {
    let user = hs.user().await;
    let name = random("room");
    let body = json!({ "room_alias_name": name });
    let made = join_all((0..6).map(|_| user.create_room(&body))).await;
    let (rooms, refused): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
    assert_eq!(rooms.len(), 1);
    let room = user.resolve_alias(&hs.alias(&name)).await.unwrap();
    assert_eq!(rooms[0].as_ref().unwrap(), &room);
    for error in refused {
        let refusal = super::refusal(error);
        let expected = [(409, "M_UNKNOWN".to_owned()), (400, "M_ROOM_IN_USE".to_owned())];
        assert!(expected.contains(&refusal), "{refusal:?}");
    }
    assert_eq!(user.joined_rooms().await.unwrap(), [room]);
}

async fn an_alias_resolves_without_a_token(hs: &Target) {
    let user = hs.user().await;
    let name = random("room");
    let room = user.create_room(&json!({ "room_alias_name": name })).await.unwrap();
    let nobody = shared::testing::matrix_client::MatrixClient::with_token(&hs.home, "", "", "");
    let path = ["directory", "room", &hs.alias(&name)];
    let answer = nobody.call(Method::GET, &path, &[], None).await.unwrap();
    assert_eq!(answer, json!({ "room_id": room, "servers": [hs.home.server_name] }));
    assert_refused!(nobody.resolve_alias(&hs.alias(&random("room"))).await, 404, "M_NOT_FOUND");
}

async fn an_alias_is_deleted_by_whoever_made_it(hs: &Target) {
    let (user, stranger) = (hs.user().await, hs.user().await);
    let name = random("room");
    let alias = hs.alias(&name);
    let room = user.create_room(&json!({ "room_alias_name": name })).await.unwrap();
    let path = ["directory", "room", &alias];
    assert_refused!(stranger.call(Method::DELETE, &path, &[], None).await, 403, "M_FORBIDDEN");
    assert_eq!(user.resolve_alias(&alias).await.unwrap(), room);
    // Also after whoever made it has left the room.
    user.leave(&room).await.unwrap();
    user.call(Method::DELETE, &path, &[], None).await.unwrap();
    assert_refused!(user.resolve_alias(&alias).await, 404, "M_NOT_FOUND");
    assert_refused!(user.call(Method::DELETE, &path, &[], None).await, 404, "M_NOT_FOUND");
}

async fn an_alias_is_put_once(hs: &Target) {
    let (user, stranger) = (hs.user().await, hs.user().await);
    let room = hs.room(&user, &[]).await;
    let alias = hs.alias(&random("room"));
    assert_refused!(stranger.put_alias(&alias, &room).await, 403, "M_FORBIDDEN");
    user.put_alias(&alias, &room).await.unwrap();
    assert_refused!(user.put_alias(&alias, &room).await, 409, "M_UNKNOWN");
    assert_eq!(user.resolve_alias(&alias).await.unwrap(), room);
}

async fn a_malformed_invite_makes_no_room(hs: &Target) {
    let user = hs.user().await;
    let name = random("room");
    let body = json!({ "room_alias_name": name, "invite": ["nonsense"] });
    assert_refused!(user.create_room(&body).await, 400, "M_UNKNOWN");
    assert_refused!(user.resolve_alias(&hs.alias(&name)).await, 404, "M_NOT_FOUND");
}

async fn an_unknown_local_user_can_be_invited(hs: &Target) {
    let user = hs.user().await;
    let nobody = hs.nobody();
    let room = user.create_room(&json!({ "invite": [nobody] })).await.unwrap();
    let members = user.members(&room).await.unwrap();
    assert!(members.contains(&(nobody, "invite".to_owned())), "{members:?}");
}

async fn an_unreachable_remote_user_leaves_room_and_alias(hs: &Target) {
    let user = hs.user().await;
    let name = random("room");
    let body = json!({ "room_alias_name": name, "name": "A room", "invite": ["@someone:unreachable.invalid"] });
    assert_refused!(user.create_room(&body).await, 502, "M_UNKNOWN");
    let room = user.resolve_alias(&hs.alias(&name)).await.unwrap();
    assert_eq!(user.state(&room, "m.room.name", "").await.unwrap()["name"], "A room");
    assert_eq!(user.members(&room).await.unwrap(), [(user.user_id().to_owned(), "join".to_owned())]);
}

async fn a_creator_may_not_stand_in_the_power_levels(hs: &Target) {
    let user = hs.user().await;
    let name = random("room");
    let body = json!({
        "room_alias_name": name,
        "power_level_content_override": { "users": { user.user_id(): 100 } },
    });
    assert_refused!(user.create_room(&body).await, 400, "M_UNKNOWN");
    // The alias was taken before the power levels were looked at, and the room is half-made.
    let room = user.resolve_alias(&hs.alias(&name)).await.unwrap();
    let types: Vec<String> = user.timeline(&room).await.unwrap().into_iter().map(|event| event.event_type).collect();
    assert_eq!(types, ["m.room.create", "m.room.member"]);
    let content = json!({ "users": { user.user_id(): 100 } });
    assert_refused!(user.put_state(&room, "m.room.power_levels", "", &content).await, 400, "M_UNKNOWN");
    user.put_state(&room, "m.room.power_levels", "", &json!({ "users": {} })).await.unwrap();
}

async fn power_levels_can_be_overridden(hs: &Target) {
    let (user, guest) = (hs.user().await, hs.user().await);
    let body = json!({
        "invite": [guest.user_id()],
        "power_level_content_override": { "events_default": 10, "users": { guest.user_id(): 5 } },
    });
    let room = user.create_room(&body).await.unwrap();
    guest.join(&room).await.unwrap();
    assert_refused!(guest.say(&room, "x").await, 403, "M_FORBIDDEN");
    user.say(&room, "x").await.unwrap();
    let levels = json!({ "events_default": 10, "users": { guest.user_id(): 10 } });
    assert_refused!(guest.put_state(&room, "m.room.power_levels", "", &levels).await, 403, "M_FORBIDDEN");
    user.put_state(&room, "m.room.power_levels", "", &levels).await.unwrap();
    guest.say(&room, "x").await.unwrap();
}

async fn initial_state_takes_the_place_of_the_preset(hs: &Target) {
    let user = hs.user().await;
    let state = |event_type: &str, content: Value| json!({ "type": event_type, "state_key": "", "content": content });
    let body = json!({
        "preset": "private_chat",
        "initial_state": [
            state("m.room.history_visibility", json!({ "history_visibility": "invited" })),
            state("m.room.guest_access", json!({ "guest_access": "forbidden" })),
        ],
    });
    let room = user.create_room(&body).await.unwrap();
    let events = user.timeline(&room).await.unwrap();
    let of_type = |name: &str| events.iter().filter(|event| event.event_type == name).collect::<Vec<_>>();
    let visibility = of_type("m.room.history_visibility");
    assert_eq!((visibility.len(), &visibility[0].content["history_visibility"]), (1, &json!("invited")));
    let guests = of_type("m.room.guest_access");
    assert_eq!((guests.len(), &guests[0].content["guest_access"]), (1, &json!("forbidden")));
}

async fn an_unknown_room_version_is_refused(hs: &Target) {
    let user = hs.user().await;
    let made = user.create_room(&json!({ "room_version": "nonsense" })).await;
    assert_refused!(made, 400, "M_UNSUPPORTED_ROOM_VERSION");
}
