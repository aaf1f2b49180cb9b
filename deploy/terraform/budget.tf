# Tells people; it stops nothing. What one job can cost is bounded by its --max_num_workers.

data "google_project" "this" {
  project_id = var.project
}

resource "google_monitoring_notification_channel" "budget" {
  for_each     = var.budget_emails
  display_name = "Budget of ${var.prefix}: ${each.value}"
  type         = "email"
  labels       = { email_address = each.value }
  depends_on   = [google_project_service.needed]
}

resource "google_billing_budget" "monthly" {
  billing_account = var.billing_account
  display_name    = "${var.prefix} per month"

  budget_filter {
    projects        = ["projects/${data.google_project.this.number}"]
    calendar_period = "MONTH"
  }

  amount {
    specified_amount {
      units = tostring(var.budget)
    }
  }

  dynamic "threshold_rules" {
    for_each = [0.5, 0.9, 1.0]
    content {
      threshold_percent = threshold_rules.value
    }
  }
  threshold_rules {
    threshold_percent = 1.0
    spend_basis       = "FORECASTED_SPEND"
  }

  all_updates_rule {
    monitoring_notification_channels = [
      for channel in google_monitoring_notification_channel.budget : channel.id
    ]
    disable_default_iam_recipients = false
  }
}
