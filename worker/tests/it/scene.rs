//! The whole product around a homeserver, as a test needs it.

use shared::testing::{
    database::TestDatabase,
    homeserver::FakeHomeserver,
    matrix_client::{HomeserverAddress, MatrixClient},
    nova::{Environment, NovaUser, Program, api_environment, service_account, worker_environment},
    test_variable,
};

/// A homeserver and the service account on it.
pub(crate) struct Home {
    pub(crate) address: HomeserverAddress,
    pub(crate) account: MatrixClient,
}

impl Home {
    pub(crate) async fn of(fake: &FakeHomeserver) -> Self {
        Self::at(HomeserverAddress::from(fake)).await
    }

    pub(crate) async fn synapse() -> Self {
        Self::at(HomeserverAddress {
            url: test_variable("TEST_HOMESERVER_URL"),
            server_name: test_variable("TEST_HOMESERVER_NAME"),
            registration_secret: test_variable("TEST_HOMESERVER_REGISTRATION_SECRET"),
        })
        .await
    }

    async fn at(address: HomeserverAddress) -> Self {
        let account = service_account(&address).await;
        Self { address, account }
    }

    /// The Matrix account of a user, registered.
    pub(crate) async fn member(&self, user: &NovaUser) -> MatrixClient {
        let localpart = format!("nova-{}", user.user_id.as_uuid().simple());
        MatrixClient::register(&self.address, &localpart, "password").await.unwrap()
    }
}

/// Database and API, and the environment of workers.
pub(crate) struct Scene {
    pub(crate) database: TestDatabase,
    pub(crate) api: Program,
    pub(crate) worker_environment: Environment,
    pub(crate) ada: NovaUser,
    pub(crate) grace: NovaUser,
}

impl Scene {
    pub(crate) async fn new(home: &Home) -> Self {
        let database = TestDatabase::create().await;
        let url = database.url.clone();
        Self::with(home, database, &url).await
    }

    /// With a database that programs reach at this URL.
    pub(crate) async fn with(home: &Home, database: TestDatabase, url: &str) -> Self {
        let api = Program::start("api", &api_environment(url)).await;
        let worker_environment = worker_environment(url, &home.account);
        let (ada, grace) = (NovaUser::new(&api), NovaUser::new(&api));
        Self { database, api, worker_environment, ada, grace }
    }

    pub(crate) async fn worker(&self) -> Program {
        Program::start("worker", &self.worker_environment).await
    }

    /// A worker with other options.
    pub(crate) async fn worker_with(&self, options: &[(&str, &str)]) -> Program {
        let mut environment = self.worker_environment.clone();
        environment.extend(options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Program::start("worker", &environment).await
    }
}

/// The id of what an answer describes.
pub(crate) fn id(body: &serde_json::Value) -> String {
    body["id"].as_str().unwrap().to_owned()
}
