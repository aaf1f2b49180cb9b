# Three identities, each with what it needs and no more: workers (of Flex Templates also those that
# build the graph), the scheduler, and the people who submit jobs.

resource "google_service_account" "worker" {
  account_id   = "${var.prefix}-worker"
  display_name = "Dataflow workers of h01_beam"
}

resource "google_service_account" "scheduler" {
  account_id   = "${var.prefix}-scheduler"
  display_name = "Starts scheduled reprocessing of h01_beam"
}

locals {
  worker    = google_service_account.worker.member
  scheduler = google_service_account.scheduler.member
  # (bucket, role) of the workers.
  worker_buckets = {
    data    = "roles/storage.objectViewer"
    runs    = "roles/storage.objectUser"
    release = "roles/storage.objectViewer"
    temp    = "roles/storage.objectUser"
  }
  submitter_buckets = {
    data    = "roles/storage.objectUser"
    runs    = "roles/storage.objectUser"
    release = "roles/storage.objectUser"
    temp    = "roles/storage.objectUser"
  }
}

# To run work items, and nothing of other people's jobs.
resource "google_project_iam_member" "worker" {
  project = var.project
  role    = "roles/dataflow.worker"
  member  = local.worker
}

resource "google_storage_bucket_iam_member" "worker" {
  for_each = local.worker_buckets
  bucket   = google_storage_bucket.bucket[each.key].name
  role     = each.value
  member   = local.worker
}

resource "google_artifact_registry_repository_iam_member" "worker" {
  repository = google_artifact_registry_repository.images.name
  location   = google_artifact_registry_repository.images.location
  role       = "roles/artifactregistry.reader"
  member     = local.worker
}

resource "google_artifact_registry_repository_iam_member" "builder" {
  for_each   = var.builders
  repository = google_artifact_registry_repository.images.name
  location   = google_artifact_registry_repository.images.location
  role       = "roles/artifactregistry.writer"
  member     = each.value
}

# To create jobs whose workers are that account.
resource "google_project_iam_member" "submitter" {
  for_each = merge({ for who in var.submitters : who => who }, { scheduler = local.scheduler })
  project  = var.project
  role     = "roles/dataflow.developer"
  member   = each.value
}

resource "google_service_account_iam_member" "submitter" {
  for_each           = merge({ for who in var.submitters : who => who }, { scheduler = local.scheduler })
  service_account_id = google_service_account.worker.name
  role               = "roles/iam.serviceAccountUser"
  member             = each.value
}

resource "google_storage_bucket_iam_member" "submitter" {
  for_each = {
    for pair in setproduct(keys(local.submitter_buckets), var.submitters) :
    "${pair[0]} ${pair[1]}" => { bucket = pair[0], who = pair[1] }
  }
  bucket = google_storage_bucket.bucket[each.value.bucket].name
  role   = local.submitter_buckets[each.value.bucket]
  member = each.value.who
}

resource "google_storage_bucket_iam_member" "scheduler" {
  bucket = google_storage_bucket.bucket["release"].name
  role   = "roles/storage.objectViewer"
  member = local.scheduler
}
