# Each run is brought up to date on its schedule: the scheduler launches the Flex Template of
# pipelines.reprocess. Of one name Dataflow runs one job at a time, so that two never meet.

resource "google_cloud_scheduler_job" "reprocess" {
  for_each         = var.reprocess
  name             = "${var.prefix}-reprocess-${each.key}"
  description      = "Reprocesses ${each.value.run_dir}"
  region           = var.region
  schedule         = each.value.cron
  time_zone        = "Etc/UTC"
  paused           = each.value.paused
  attempt_deadline = "180s"

  retry_config {
    retry_count          = 3
    min_backoff_duration = "60s"
  }

  http_target {
    http_method = "POST"
    uri         = "https://dataflow.googleapis.com/v1b3/projects/${var.project}/locations/${var.region}/flexTemplates:launch"
    headers     = { "Content-Type" = "application/json" }
    body = base64encode(jsonencode({
      launchParameter = {
        jobName              = "${var.prefix}-reprocess-${each.key}"
        containerSpecGcsPath = "gs://${google_storage_bucket.bucket["release"].name}/templates/reprocess.json"
        parameters           = { run_dir = each.value.run_dir }
        environment = {
          maxWorkers          = each.value.max_workers
          serviceAccountEmail = google_service_account.worker.email
          subnetwork          = "regions/${var.region}/subnetworks/${google_compute_subnetwork.workers.name}"
          ipConfiguration     = "WORKER_IP_PRIVATE"
          tempLocation        = "gs://${google_storage_bucket.bucket["temp"].name}/tmp"
          stagingLocation     = "gs://${google_storage_bucket.bucket["temp"].name}/staging"
        }
      }
    }))
    oauth_token {
      service_account_email = google_service_account.scheduler.email
      scope                 = "https://www.googleapis.com/auth/cloud-platform"
    }
  }

  depends_on = [google_project_service.needed]
}
