//! Who is in a conversation, and as whom Matrix users appear.

use shared::{
    chat,
    ids::{MatrixUserId, UserId},
    inbound::{Applied, Asked, Incoming, Membership, What},
};

use super::{SERVER, Scene};

impl Scene {
    fn membership(&self, id: &str, user: &MatrixUserId, membership: Membership, now: Option<Asked>) -> Incoming {
        self.event(id, 1000, What::Member { user: user.clone(), membership, display_name: None, now })
    }

    async fn is_member(&self, user_id: UserId) -> bool {
        let mut conn = self.database.pool.acquire().await.unwrap();
        chat::is_member(&mut conn, self.conversation_id, user_id).await.unwrap()
    }
}

/// Other names on Matrix that hold the same user's id.
fn other_spellings(user_id: UserId) -> [MatrixUserId; 3] {
    let (plain, hyphenated) = (user_id.as_uuid().simple().to_string(), user_id.as_uuid().hyphenated().to_string());
    let name = |id: &str| format!("@nova-{id}:{SERVER}").parse().unwrap();
    [name(&hyphenated), name(&plain.to_uppercase()), name(&hyphenated.to_uppercase())]
}

#[tokio::test]
async fn a_membership_that_ours_outdates_changes_nothing() {
    let scene = Scene::new().await;
    let grace = MatrixUserId::of(scene.grace, SERVER);
    let left = |id: &str, now: Option<Asked>| scene.membership(id, &grace, Membership::Leave, now);
    let is_member = || scene.is_member(scene.grace);
    // The room was not asked; or it says that she is in by now.
    assert_eq!(scene.apply(&left("unasked", None)).await, Applied::Unchanged);
    let in_it = Asked { membership: Some(Membership::Join), seq: i64::MAX };
    assert_eq!(scene.apply(&left("old", Some(in_it))).await, Applied::Unchanged);
    // She was added after the room was asked.
    let before = Asked { membership: Some(Membership::Leave), seq: 0 };
    assert_eq!(scene.apply(&left("outdated", Some(before))).await, Applied::Unchanged);
    assert!(is_member().await);
    let out = Asked { membership: Some(Membership::Leave), seq: i64::MAX };
    assert_eq!(scene.apply(&left("left", Some(out))).await, Applied::Changed);
    assert!(!is_member().await);
    assert_eq!(scene.waiting().await, [], "nothing of it goes out");
}

#[tokio::test]
async fn another_spelling_of_a_users_name_neither_leaves_for_her_nor_joins() {
    let scene = Scene::new().await;
    let alan = UserId::generate();
    let asked = |membership: Membership| Some(Asked { membership: Some(membership), seq: i64::MAX });
    for (n, spelling) in other_spellings(scene.grace).iter().enumerate() {
        let left = scene.membership(&format!("left {n}"), spelling, Membership::Leave, asked(Membership::Leave));
        assert_eq!(scene.apply(&left).await, Applied::Unchanged, "{spelling}");
        assert!(scene.is_member(scene.grace).await, "{spelling}");
    }
    for (n, spelling) in other_spellings(alan).iter().enumerate() {
        let joined = scene.membership(&format!("joined {n}"), spelling, Membership::Join, asked(Membership::Join));
        assert_eq!(scene.apply(&joined).await, Applied::Unchanged, "{spelling}");
        assert!(!scene.is_member(alan).await, "{spelling}");
    }
    assert_eq!(scene.count("conversation_contacts").await, 0, "a user is no contact");
}

#[tokio::test]
async fn who_is_mentioned_by_any_spelling_of_her_name_is_mentioned_once() {
    let scene = Scene::new().await;
    let mut event = scene.said("mention", "you three who are one");
    let What::Message { mentioned, .. } = &mut event.what else { unreachable!() };
    mentioned.extend(other_spellings(scene.grace));
    mentioned.push(MatrixUserId::of(scene.grace, SERVER));
    assert_eq!(scene.apply(&event).await, Applied::Changed);
    let message = scene.messages().await.remove(0);
    assert_eq!(message.content.unwrap().mentions.users, [scene.grace]);
}

#[tokio::test]
async fn a_knock_makes_no_contact_and_takes_none_away() {
    let scene = Scene::new().await;
    let bob: MatrixUserId = "@bob:elsewhere.test".parse().unwrap();
    let contacts = || async {
        let mut conn = scene.database.pool.acquire().await.unwrap();
        let found = chat::conversation(&mut conn, scene.conversation_id, scene.ada).await.unwrap();
        found.contacts.into_iter().map(|contact| contact.matrix_user_id).collect::<Vec<_>>()
    };
    scene.apply(&scene.membership("knock", &bob, Membership::Knock, None)).await;
    assert_eq!(contacts().await, [""; 0]);
    scene.apply(&scene.membership("join", &bob, Membership::Join, None)).await;
    assert_eq!(contacts().await, [bob.as_str()]);
    scene.apply(&scene.membership("knock again", &bob, Membership::Knock, None)).await;
    assert_eq!(contacts().await, [bob.as_str()]);
    scene.apply(&scene.membership("leave", &bob, Membership::Leave, None)).await;
    assert_eq!(contacts().await, [""; 0]);
}
