//! Invites, joins, kicks, bans: what is answered when it is so already, and when it may not be.
use super::{Target, assert_refused, laws};

laws!(
    inviting_again_makes_no_second_event,
    inviting_a_member_is_forbidden,
    a_banned_user_cannot_be_invited,
    joining_takes_an_invite,
    joining_unknown_rooms_is_not_found,
    kicking_whom_is_not_there_is_forbidden,
    kicking_takes_power,
    leaving_twice_is_fine,
    leaving_what_one_is_not_in_is_forbidden,
    an_invite_can_be_rejected_and_repeated,
    a_kicked_member_can_be_invited_again,
    inviting_takes_membership,
    membership_can_be_read_as_state,
);

async fn inviting_again_makes_no_second_event(hs: &Target) {
    let user = hs.user().await;
    let room = hs.room(&user, &[]).await;
    let nobody = hs.nobody();
    user.invite(&room, &nobody).await.unwrap();
    user.invite(&room, &nobody).await.unwrap();
    let events = user.timeline(&room).await.unwrap();
    assert_eq!(events.iter().filter(|event| event.state_key.as_ref() == Some(&nobody)).count(), 1);
}

async fn inviting_a_member_is_forbidden(hs: &Target) {
    let (user, guest) = (hs.user().await, hs.user().await);
    let room = hs.room(&user, &[&guest]).await;
    assert_refused!(user.invite(&room, guest.user_id()).await, 403, "M_FORBIDDEN");
}

async fn a_banned_user_cannot_be_invited(hs: &Target) {
    let (user, guest) = (hs.user().await, hs.user().await);
    let room = hs.room(&user, &[&guest]).await;
    user.ban(&room, guest.user_id()).await.unwrap();
    assert_refused!(user.invite(&room, guest.user_id()).await, 403, "M_BAD_STATE");
    assert_refused!(guest.join(&room).await, 403, "M_BAD_STATE");
    user.unban(&room, guest.user_id()).await.unwrap();
    assert_refused!(user.unban(&room, guest.user_id()).await, 403, "M_BAD_STATE");
    user.invite(&room, guest.user_id()).await.unwrap();
}

async fn joining_takes_an_invite(hs: &Target) {
    let (user, guest) = (hs.user().await, hs.user().await);
    let room = hs.room(&user, &[]).await;
    assert_refused!(guest.join(&room).await, 403, "M_FORBIDDEN");
    user.invite(&room, guest.user_id()).await.unwrap();
    guest.join(&room).await.unwrap();
    guest.join(&room).await.unwrap();
    let events = user.timeline(&room).await.unwrap();
    assert_eq!(events.iter().filter(|event| event.state_key.as_deref() == Some(guest.user_id())).count(), 2);
}

async fn joining_unknown_rooms_is_not_found(hs: &Target) {
    let user = hs.user().await;
    assert_refused!(user.join("!0000000000000000000000000000000000000000000").await, 404, "M_UNKNOWN");
    assert_refused!(user.join(&hs.alias("no-such-alias")).await, 404, "M_NOT_FOUND");
}

async fn kicking_whom_is_not_there_is_forbidden(hs: &Target) {
    let (user, guest) = (hs.user().await, hs.user().await);
    let room = hs.room(&user, &[&guest]).await;
    assert_refused!(user.kick(&room, &hs.nobody()).await, 403, "M_FORBIDDEN");
    user.kick(&room, guest.user_id()).await.unwrap();
    assert_eq!(user.state(&room, "m.room.member", guest.user_id()).await.unwrap()["membership"], "leave");
    assert_refused!(user.kick(&room, guest.user_id()).await, 403, "M_FORBIDDEN");
}

async fn kicking_takes_power(hs: &Target) {
    let (user, guest, other) = (hs.user().await, hs.user().await, hs.user().await);
    let room = hs.room(&user, &[&guest, &other]).await;
    assert_refused!(guest.kick(&room, other.user_id()).await, 403, "M_FORBIDDEN");
    assert_refused!(guest.kick(&room, user.user_id()).await, 403, "M_FORBIDDEN");
    assert_refused!(guest.ban(&room, other.user_id()).await, 403, "M_FORBIDDEN");
    user.kick(&room, other.user_id()).await.unwrap();
}

async fn leaving_twice_is_fine(hs: &Target) {
    let (user, guest) = (hs.user().await, hs.user().await);
    let room = hs.room(&user, &[&guest]).await;
    guest.leave(&room).await.unwrap();
    guest.leave(&room).await.unwrap();
    assert_refused!(user.kick(&room, guest.user_id()).await, 403, "M_FORBIDDEN");
}

async fn leaving_what_one_is_not_in_is_forbidden(hs: &Target) {
    let (user, guest, stranger) = (hs.user().await, hs.user().await, hs.user().await);
    let room = hs.room(&user, &[&guest]).await;
    assert_refused!(stranger.leave(&room).await, 403, "M_FORBIDDEN");
    user.kick(&room, guest.user_id()).await.unwrap();
    assert_refused!(guest.leave(&room).await, 403, "M_FORBIDDEN");
    let unknown = "!0000000000000000000000000000000000000000000";
    assert_refused!(guest.leave(unknown).await, 404, "M_UNKNOWN");
}

async fn an_invite_can_be_rejected_and_repeated(hs: &Target) {
    let (user, guest) = (hs.user().await, hs.user().await);
    let room = hs.room(&user, &[]).await;
    user.invite(&room, guest.user_id()).await.unwrap();
    guest.leave(&room).await.unwrap();
    assert_refused!(guest.join(&room).await, 403, "M_FORBIDDEN");
    user.invite(&room, guest.user_id()).await.unwrap();
    guest.join(&room).await.unwrap();
}

async fn a_kicked_member_can_be_invited_again(hs: &Target) {
    let (user, guest) = (hs.user().await, hs.user().await);
    let room = hs.room(&user, &[&guest]).await;
    user.kick(&room, guest.user_id()).await.unwrap();
    assert_refused!(guest.join(&room).await, 403, "M_FORBIDDEN");
    user.invite(&room, guest.user_id()).await.unwrap();
    guest.join(&room).await.unwrap();
    guest.say(&room, "back").await.unwrap();
}

async fn inviting_takes_membership(hs: &Target) {
    let (user, stranger) = (hs.user().await, hs.user().await);
    let room = hs.room(&user, &[]).await;
    assert_refused!(stranger.invite(&room, &hs.nobody()).await, 403, "M_FORBIDDEN");
    let unknown = "!0000000000000000000000000000000000000000000";
    assert_refused!(stranger.invite(unknown, &hs.nobody()).await, 403, "M_FORBIDDEN");
    assert_refused!(stranger.kick(&room, user.user_id()).await, 403, "M_FORBIDDEN");
    assert_refused!(user.invite(&room, "nonsense").await, 400, "M_INVALID_PARAM");
}

async fn membership_can_be_read_as_state(hs: &Target) {
    let (user, guest) = (hs.user().await, hs.user().await);
    let room = hs.room(&user, &[]).await;
    assert_refused!(user.state(&room, "m.room.member", guest.user_id()).await, 404, "M_NOT_FOUND");
    for (membership, expected) in [("invite", "invite"), ("join", "join"), ("leave", "leave")] {
        match membership {
            "invite" => user.invite(&room, guest.user_id()).await.unwrap(),
            "join" => guest.join(&room).await.unwrap(),
            _ => user.kick(&room, guest.user_id()).await.unwrap(),
        }
        let content = user.state(&room, "m.room.member", guest.user_id()).await.unwrap();
        assert_eq!(content["membership"], expected);
    }
    let path = ["rooms", room.as_str(), "joined_members"];
    let answer = user.call(reqwest::Method::GET, &path, &[], None).await.unwrap();
    let joined: Vec<&String> = answer["joined"].as_object().unwrap().keys().collect();
    assert_eq!(joined, [user.user_id()]);
}
